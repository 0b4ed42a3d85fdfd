#!/usr/bin/env bash
# From a fresh clone to a trained and evaluated model on the toy data; prints the main numbers and where the rest is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash run_scripts/setup.sh
.venv/bin/python -m simple_multimodal toy datasets/toy
.venv/bin/python train.py --config configs/runs/toy.yaml "$@"

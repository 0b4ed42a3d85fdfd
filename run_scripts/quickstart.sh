#!/usr/bin/env bash
# Goes from a fresh clone to a model trained and evaluated on the toy data; prints the main metrics and where to find the rest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash run_scripts/setup.sh
.venv/bin/python -m simple_multimodal toy datasets/toy
.venv/bin/python train.py --config configs/runs/toy.yaml "$@"

#!/usr/bin/env bash
# Kills training runs and compares what they end with, for hours; then the faults beside the stock Trainer:
#   test_faults.sh [kills anywhere [in saving [of a rank [faults of a kind]]]]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES="" TOKENIZERS_PARALLELISM=false
.venv/bin/python -m tests.faults.kills anywhere --count "${1:-50}"
.venv/bin/python -m tests.faults.kills saving --count "${2:-40}"
.venv/bin/python -m tests.faults.kills rank --count "${3:-5}"
.venv/bin/python -m tests.faults.stock --count "${4:-10}"

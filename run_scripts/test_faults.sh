#!/usr/bin/env bash
# Kills training runs and compares their results, for hours; then compares faults with the stock Trainer:
#   test_faults.sh [NUM_KILLS_ANYWHERE [NUM_KILLS_WHILE_SAVING [NUM_KILLS_OF_A_RANK [NUM_FAULTS_OF_A_KIND]]]]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES="" TOKENIZERS_PARALLELISM=false
.venv/bin/python -m tests.faults.kills anywhere --count "${1:-50}"
.venv/bin/python -m tests.faults.kills saving --count "${2:-40}"
.venv/bin/python -m tests.faults.kills rank --count "${3:-5}"
.venv/bin/python -m tests.faults.stock --count "${4:-10}"

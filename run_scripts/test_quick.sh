#!/usr/bin/env bash
# Runs the linter and the library tests that start no other process, in about a minute, for daily work; test.sh runs everything.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
.venv/bin/python -m ruff check .
.venv/bin/python -m pytest -q --numprocesses 2 --dist loadfile tests/test_layout.py tests/test_configs.py tests/evaluation tests/processing \
    tests/data/test_{manifest,tables,sampler,masking,randomness,files}.py tests/media/test_{sampling,clock,errors,audio}.py \
    tests/models/test_{losses,crossformer,pairs,times,loading,audio_windows}.py tests/training/test_evaluation.py "$@"

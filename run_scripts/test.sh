#!/usr/bin/env bash
# Runs linter, type checker and tests in the environment of setup.sh; pytest's summary line comes last.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash run_scripts/setup.sh
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy
.venv/bin/python -m pytest -q --numprocesses auto --dist loadfile --no-loadscope-reorder "$@"

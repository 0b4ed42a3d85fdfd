#!/usr/bin/env bash
# Lint, types and tests, with the environment of quickstart.sh; prints pytest's closing line last.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash run_scripts/setup.sh
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy
.venv/bin/python -m pytest -q --numprocesses auto --maxprocesses 8 --dist loadfile "$@"

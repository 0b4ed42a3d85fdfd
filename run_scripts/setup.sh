#!/usr/bin/env bash
# Creates .venv with the exact versions of requirements.lock and this project. An up-to-date .venv is left unchanged.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stamp=$(cat requirements.lock pyproject.toml | cksum)
if [ "$(cat .venv/lock.stamp 2>/dev/null)" = "$stamp" ]; then exit 0; fi
[ -x .venv/bin/python ] || "${PYTHON:-$(command -v python3.11 || command -v python3)}" -m venv .venv
(.venv/bin/python -m pip install --quiet uv && .venv/bin/python -m uv pip install --quiet --compile-bytecode --python .venv -r requirements.lock) || .venv/bin/python -m pip install -r requirements.lock
.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --config-settings editable_mode=compat --editable . && echo "$stamp" > .venv/lock.stamp

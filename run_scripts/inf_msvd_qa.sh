#!/usr/bin/env bash
# Measures a model on data/msvd_qa (txt/, videos/): inf_msvd_qa.sh MODEL [flags of `simple-multimodal infer`]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHONPATH="$root" "$root/.venv/bin/python" -m simple_multimodal infer "${1:?name the folder of a model}" "${DATA:-data/msvd_qa}" \
    --output_dir "${OUTPUT:-outputs/inf_msvd_qa}" "${@:2}"

#!/usr/bin/env bash
# Evaluates a model on data/msvd_qa: inf_msvd_qa.sh [MODEL] [flags of `simple-multimodal infer`]. MODEL defaults to ALPRO's, in
# output/downstreams/msvd_qa/public/ckpt, converted on first use. Both folders are searched here, then next to run_scripts/.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
place() { if [[ -e "$1" ]]; then echo "$1"; else echo "$root/$1"; fi; }
if [[ $# -eq 0 || "$1" == -* ]]; then set -- "$(place output/downstreams/msvd_qa/public)" "$@"; fi
PYTHONPATH="$root" "$root/.venv/bin/python" -m simple_multimodal infer "$1" "${DATA:-$(place data/msvd_qa)}" \
    --output_dir "${OUTPUT:-outputs/inf_msvd_qa}" "${@:2}"

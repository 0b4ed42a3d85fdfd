#!/usr/bin/env bash
# Evaluates a model on data/msrvtt_ret: inf_msrvtt_ret.sh [MODEL] [flags of `simple-multimodal infer`]. MODEL defaults to ALPRO's, in
# output/downstreams/msrvtt_ret/public/ckpt, converted on first use. Both folders are searched here, then next to run_scripts/.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
place() { if [[ -e "$1" ]]; then echo "$1"; else echo "$root/$1"; fi; }
if [[ $# -eq 0 || "$1" == -* ]]; then set -- "$(place output/downstreams/msrvtt_ret/public)" "$@"; fi
PYTHONPATH="$root" "$root/.venv/bin/python" -m simple_multimodal infer "$1" "${DATA:-$(place data/msrvtt_ret)}" \
    --output_dir "${OUTPUT:-outputs/inf_msrvtt_ret}" "${@:2}"

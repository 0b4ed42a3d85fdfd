#!/usr/bin/env bash
# Creates .venv-pose with MediaPipe, for `simple-multimodal estimate_poses`: its NumPy and protobuf are too old for ours. Needs Python 3.11 or 3.12.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stamp=$(cksum < run_scripts/setup_pose.sh)
if [ "$(cat .venv-pose/setup.stamp 2>/dev/null)" = "$stamp" ]; then exit 0; fi
"${PYTHON:-$(command -v python3.11 || command -v python3.12 || command -v python3)}" -m venv --clear .venv-pose
.venv-pose/bin/python -m pip install --quiet --no-deps mediapipe==0.10.21 absl-py==2.5.1 attrs==26.1.0 flatbuffers==25.12.19 numpy==1.26.4 protobuf==4.25.9 opencv-python-headless==4.11.0.86 matplotlib==3.11.2 contourpy==1.3.3 cycler==0.12.1 fonttools==4.68.0 kiwisolver==1.5.1 packaging==26.4 pillow==13.0.0 pyparsing==3.3.3 python-dateutil==4.0.0 six==1.17.0  # --no-deps leaves out JAX, which Holistic does not use, and what needs a display
.venv-pose/bin/python -c "from mediapipe.python.solutions import holistic" && echo "$stamp" > .venv-pose/setup.stamp

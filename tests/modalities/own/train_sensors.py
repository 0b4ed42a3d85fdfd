"""Runs `train.py` with the modality of this folder."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[3])]

import sensors  # noqa: E402, F401  (which adds the modality)

import train  # noqa: E402

train.main()

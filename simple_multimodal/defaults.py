"""Defaults and choices that signatures of the library share with its command lines.

It imports nothing heavy, so that `--help` can show them at once.
"""

from typing import Literal

VideoBackendName = Literal["pyav", "torchcodec", "decord"]
DecodeDevice = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16", "fp16"]

DEFAULT_TASK = "pretraining"

# How files are read.
VIDEO_BACKEND: VideoBackendName = "pyav"
DECODE_DEVICE: DecodeDevice = "cpu"

# When training and inference give up on a file, and on a data set.
MAX_BAD_FRACTION = 0.2  # share of bad samples at which they stop
SAMPLE_TIMEOUT_SECONDS = 120.0
LOADER_MEMORY_GIGABYTES = 4.0

# Models in use.
BATCH_SIZE = 16
TOP_K_CLIPS = 10  # found by a search
TOP_K_ANSWERS = 1
CLIPS_PER_SHARD = 128  # of features

# Prepared benchmarks.
NUM_VALIDATION_CLIPS = 500  # set aside where a benchmark has no validation list

# The toy world.
TOY_TRAIN_CLIPS = 2000
TOY_VALIDATION_VIDEOS = 16
TOY_VALIDATION_AUDIO = 16
TOY_QUESTION_CLIPS = 243
TOY_PAIRS = 512

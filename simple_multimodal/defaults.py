"""Defaults and choices that the library shares with its command lines.

Imports nothing heavy, so that `--help` is fast.
"""

from typing import Literal

VideoBackendName = Literal["pyav", "torchcodec", "decord"]
DecodeDevice = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16", "fp16"]
Difficulty = Literal["easy", "hard"]  # of the toy dataset of signs
Hand = Literal["left", "right"]

DEFAULT_TASK = "pretraining"

# How files are read.
VIDEO_BACKEND: VideoBackendName = "pyav"
DECODE_DEVICE: DecodeDevice = "cpu"

# Limits at which training and inference give up on a file or a dataset.
MAX_BAD_FRACTION = 0.2  # fraction of bad samples above which they stop
SAMPLE_TIMEOUT_SECONDS = 120.0
LOADER_MEMORY_GIGABYTES = 4.0

# Inference.
BATCH_SIZE = 16
TOP_K_CLIPS = 10  # results of a search
TOP_K_ANSWERS = 1
TOP_K_LABELS = 5  # as the pipelines of transformers
CLIPS_PER_SHARD = 128  # files of features

# Prepared benchmarks.
NUM_VALIDATION_CLIPS = 500  # taken from the training clips if a benchmark has no validation list

# The toy datasets.
TOY_TRAIN_CLIPS = 2000
TOY_VALIDATION_VIDEOS = 16
TOY_VALIDATION_AUDIO = 16
TOY_QUESTION_CLIPS = 243
TOY_PAIRS = 512
SIGN_VALIDATION_CLIPS = 200
SIGN_TEST_CLIPS = 200
SIGN_SIGNERS = 8
SIGN_FRAMES = 72

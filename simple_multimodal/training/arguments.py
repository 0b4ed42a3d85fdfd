"""The arguments of a training run: those of `transformers`, with defaults that suit loading media, and our own."""

import os
from dataclasses import MISSING, dataclass, field, fields
from typing import Literal

import torch
from transformers import SchedulerType, TrainingArguments
from transformers.utils import logging

from simple_multimodal.cores import available_cores
from simple_multimodal.data.bad_samples import LOADER_MEMORY_GIGABYTES, MAX_BAD_FRACTION, SAMPLE_TIMEOUT_SECONDS
from simple_multimodal.evaluation.precision import Precision, effective_precision
from simple_multimodal.modalities import MODALITIES
from simple_multimodal.models.distributed import leave_store_of_launcher

logger = logging.get_logger(__name__)

GROUP = "Training"

WITHOUT_EFFECT = (
    *("label_smoothing_factor", "average_tokens_across_devices", "neftune_noise_alpha", "use_cache", "label_names"),
    *("prediction_loss_only", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object"),
    *("include_for_metrics", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval", "do_predict"),
    "length_column_name",
)
"""Arguments of `transformers` for what is computed in another way here, or not at all."""


def default_num_workers() -> int:
    """Loader processes for one training process: half the cores that it may use, one to eight."""
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(8, max(1, available_cores() // (2 * local_processes)))


@dataclass
class MultimodalTrainingArguments(TrainingArguments):
    """
    Arguments of [`MultimodalTrainer`].

    > NOTE These parameters have default values different from [`~transformers.TrainingArguments`]:
    > - `do_train`, `do_eval`: both happen unless one of them is named.
    > - `remove_unused_columns`: `False`; rows are paths, and the collator needs all of them.
    > - `dataloader_num_workers`: half of this process's share of the cores, one to eight.
    > - `dataloader_persistent_workers`: `True` where there are workers.
    > - `logging_nan_inf_filter`: `False`; a loss that is not a number is shown as such.
    > - `ddp_find_unused_parameters`: `False`; the trainer freezes what a batch does not use.
    > - `accelerator_config`: with `non_blocking` where batches are pinned; else each waits for the step before it.
    """

    do_train: bool | None = field(
        default=None, metadata={"help": "Train. Default: yes, unless only --do_eval is given.", "group": GROUP}
    )
    do_eval: bool | None = field(
        default=None,
        metadata={"help": "Evaluate at the end. Default: yes, unless only --do_train is given.", "group": GROUP},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: the collator reads every column of a row."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Replace losses that are NaN or infinite by the average in the logs."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={"help": "Search the graph of every step for parameters without gradient, of which there are none."},
    )
    dataloader_num_workers: int = field(
        default_factory=default_num_workers,
        metadata={"help": "Loader processes per training process. Default: half its share of the cores, 1 to 8."},
    )
    dataloader_persistent_workers: bool | None = field(
        default=None, metadata={"help": "Keep loader processes between epochs. Default: yes if there are any."}
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Start over in a non-empty --output_dir instead of resuming its run.", "group": GROUP},
    )
    text_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the text tower. Default: --learning_rate.", "group": GROUP}
    )
    audio_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the audio tower. Default: --learning_rate.", "group": GROUP}
    )
    video_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the video tower. Default: --learning_rate.", "group": GROUP}
    )
    layer_decay: float | None = field(
        default=None,
        metadata={
            "help": "Layer-wise decay: factor of the learning rate from each layer of a tower to the one below, up to "
            "1. Default: none.",
            "group": GROUP,
        },
    )
    gradient_checkpointing_towers: list[str] = field(
        default_factory=list,
        metadata={
            "choices": (*MODALITIES, "fusion"),
            "help": "Activation (gradient) checkpointing in these towers: their layers run again in the backward "
            "pass. Default: none.",
            "group": GROUP,
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after this many evaluations without a better --metric_for_best_model. Default: never.",
            "group": GROUP,
        },
    )
    on_bad_sample: Literal["replace", "skip", "fail"] = field(
        default="replace",
        metadata={
            "help": "A training sample that cannot be read: take another for it, leave its place empty, or stop.",
            "group": "Data",
        },
    )
    max_bad_fraction: float = field(
        default=MAX_BAD_FRACTION,
        metadata={
            "help": "Stop when more than this share of the training samples read since the start is bad, of at least "
            "100.",
            "group": "Data",
        },
    )
    sample_timeout_seconds: float = field(
        default=SAMPLE_TIMEOUT_SECONDS,
        metadata={
            "help": "With loader processes, a file that is not read within this many seconds is bad; 0: no limit.",
            "group": "Data",
        },
    )
    loader_memory_gigabytes: float = field(
        default=LOADER_MEMORY_GIGABYTES,
        metadata={
            "help": "With loader processes, a file for which one grows by more than this many GB is bad; 0: no limit.",
            "group": "Data",
        },
    )
    max_nan_steps: int = field(
        default=20,
        metadata={
            "help": "Stop after this many steps in a row whose gradient is NaN or infinite; each is left out.",
            "group": GROUP,
        },
    )
    contrastive_chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Gradient caching: rows encoded at once, for large contrastive batches in the memory of small "
            "ones, by encoding twice. Default: the whole batch.",
            "group": GROUP,
        },
    )
    matching_top_k: int | None = field(
        default=None,
        metadata={
            "help": "Evaluation: candidates per query that the matching head re-ranks; 0: none. Default: what the "
            "protocol of a prepared benchmark says, else 32.",
            "group": "Evaluation",
        },
    )

    def __post_init__(self):
        asked = (self.do_train, self.do_eval)
        train = asked[0] if asked[0] is not None else asked[1] is not True
        evaluate = asked[1] if asked[1] is not None else asked[0] is not True
        self.do_train, self.do_eval = train, evaluate
        if self.dataloader_persistent_workers is None:
            self.dataloader_persistent_workers = self.dataloader_num_workers > 0
        if self.remove_unused_columns:
            raise ValueError("--remove_unused_columns must stay False: the collator reads every column of a row.")
        defaults = {
            f.name: f.default if f.default_factory is MISSING else f.default_factory()
            for f in fields(self)
            if f.name in WITHOUT_EFFECT
        }
        if given := [f"--{name}" for name, default in defaults.items() if getattr(self, name) != default]:
            raise ValueError(
                f"{', '.join(given)} can have no effect: losses and evaluation are those of the models here. Leave "
                "that out."
            )
        if self.max_nan_steps < 1:
            raise ValueError(f"--max_nan_steps is {self.max_nan_steps}; give 1 or more.")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"--layer_decay is {self.layer_decay}; give a factor above 0, up to 1 (no decay).")
        if self.gradient_checkpointing_towers and self.activation_checkpointing:
            raise ValueError(
                "--activation_checkpointing is for the whole model, --gradient_checkpointing_towers for the towers "
                "that it names. Give one of the two."
            )
        if self.contrastive_chunk_size is not None and self.contrastive_chunk_size < 1:
            raise ValueError(
                f"--contrastive_chunk_size is {self.contrastive_chunk_size}; give 1 or more rows, or leave it out to "
                "encode a batch at once."
            )
        if self.matching_top_k is not None and self.matching_top_k < 0:
            raise ValueError(f"--matching_top_k is {self.matching_top_k}; give 0 (no re-ranking) or more.")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"--max_bad_fraction is {self.max_bad_fraction}; give a share from 0 to 1.")
        for name in ("sample_timeout_seconds", "loader_memory_gigabytes"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name} is {getattr(self, name)}; give a number above 0, or 0 for no limit.")
        leave_store_of_launcher(self.ddp_timeout)
        is_configured = self.accelerator_config is not None
        super().__post_init__()
        if self.n_gpu > 1:  # which `Trainer` would put under `DataParallel`, that cannot split the counts of a step
            logger.warning(
                f"One process uses one GPU: cuda:0 of the {self.n_gpu} here. For all of them: torchrun "
                f"--nproc_per_node {self.n_gpu} train.py ..., or accelerate launch --config_file "
                f"configs/accelerate/multi_gpu.yaml --num_processes {self.n_gpu} train.py ..."
            )
            self._n_gpu = 1
        if self.activation_checkpointing_kwargs and not self.activation_checkpointing:
            raise ValueError(
                "--activation_checkpointing_kwargs can have no effect without --activation_checkpointing True; give "
                "that too, or leave both out."
            )
        if self.contrastive_chunk_size is not None and self.torch_compile:
            raise ValueError(
                "--contrastive_chunk_size repeats each chunk with the random numbers of its first pass, which "
                "torch.compile does not follow. Leave one of --contrastive_chunk_size and --torch_compile out."
            )
        if self.contrastive_chunk_size is not None and self.has_reentrant_checkpoints:
            raise ValueError(
                "--contrastive_chunk_size needs activation checkpoints that are not reentrant; leave use_reentrant "
                "out of --activation_checkpointing_kwargs."
            )
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # which torch would warn about
        if self.dataloader_pin_memory and not is_configured:
            self.accelerator_config.non_blocking = True
        if self.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
            logger.warning(
                "Samples are not put together by length, which is not known before they are read: drawn at random."
            )
        launched = {"RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"} & os.environ.keys()
        if "ACCELERATE_USE_CPU" in os.environ and "MASTER_PORT" in os.environ and not launched:
            logger.warning(
                "`accelerate launch --cpu` starts one process only, whatever --num_processes says, unless it is given "
                "an MPI host file. For several processes on a CPU: accelerate launch --config_file "
                "configs/accelerate/cpu.yaml --num_processes N train.py --use_cpu ..., or "
                "torchrun --nproc_per_node N train.py --use_cpu ..."
            )
        if self.early_stopping_patience is not None and (
            self.metric_for_best_model is None or self.eval_strategy == "no"
        ):
            raise ValueError(
                "--early_stopping_patience needs --metric_for_best_model, for example 'text_to_video_R@1', "
                "and --eval_strategy epoch or steps."
            )

    @property
    def has_reentrant_checkpoints(self) -> bool:
        """Whether activation checkpoints are of torch's older kind, which goes backward within the backward pass."""
        return bool((self.activation_checkpointing_kwargs or {}).get("use_reentrant", False))

    @property
    def precision(self) -> Precision:
        """What the model computes in, in training and in evaluation."""
        return effective_precision(bf16=self.bf16, fp16=self.fp16, device_type=self.device.type)

    @property
    def selects(self) -> bool:
        """Whether evaluations in training decide which weights the run ends with."""
        reduces_rate = self.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU
        stops_early = self.early_stopping_patience is not None
        return bool(self.do_train) and (self.load_best_model_at_end or stops_early or reduces_rate)

    @property
    def tower_learning_rates(self) -> dict[str, float]:
        """Learning rates that differ from `learning_rate`, by modality."""
        rates = {"text": self.text_learning_rate, "audio": self.audio_learning_rate, "video": self.video_learning_rate}
        return {modality: rate for modality, rate in rates.items() if rate is not None}


def load_on_gpu(args: MultimodalTrainingArguments) -> None:
    """
    Settings of loaders whose frames come from the decoder of a GPU: processes are spawned, and nothing is pinned.

    Raises:
        ValueError: Loader processes are to be forked, or the model is not on a GPU.
    """
    if args.device.type != "cuda":
        raise ValueError(
            f"--decode_device cuda is for a model on a GPU, and this one is trained on {args.device}; leave out "
            "--decode_device or --use_cpu."
        )
    if args.dataloader_num_workers and args.dataloader_multiprocessing_context == "fork":
        raise ValueError(
            "--decode_device cuda: CUDA does not work in a process that was forked. Give "
            "--dataloader_multiprocessing_context spawn, or --dataloader_num_workers 0 to decode in the main process."
        )
    if args.dataloader_num_workers and args.dataloader_multiprocessing_context is None:
        args.dataloader_multiprocessing_context = "spawn"
    args.dataloader_pin_memory = False
    args.accelerator_config.non_blocking = False

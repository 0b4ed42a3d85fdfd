"""The arguments of a training run: those of `transformers`, with defaults that suit loading media, and our own."""

import os
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

import torch
from transformers import SchedulerType, TrainingArguments
from transformers.utils import logging

from simple_multimodal.cores import available_cores
from simple_multimodal.defaults import LOADER_MEMORY_GIGABYTES, MAX_BAD_FRACTION, SAMPLE_TIMEOUT_SECONDS, Precision
from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.precision import effective_precision
from simple_multimodal.flags import DATA, TRAINER, TRAINING, check_bounds, flag
from simple_multimodal.modalities import BUILT_IN_MODALITIES
from simple_multimodal.training.rendezvous import leave_store_of_launcher

logger = logging.get_logger(__name__)

TOWER_RATE = "Learning rate of the {} tower. Default: --learning_rate."

LIMIT: dict[str, Any] = {"at_least": 0, "remedy": "give a number above 0, or 0 for no limit"}
"""Bounds of what a file may take."""

WITHOUT_EFFECT = (
    *("label_smoothing_factor", "average_tokens_across_devices", "neftune_noise_alpha", "use_cache", "label_names"),
    *("prediction_loss_only", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object"),
    *("include_for_metrics", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval"),
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
    > - `do_train`, `do_eval`: both happen unless one of them, or `do_predict`, is named.
    > - `remove_unused_columns`: `False`; rows are paths, and the collator needs all of them.
    > - `dataloader_num_workers`: half of this process's share of the cores, one to eight.
    > - `dataloader_persistent_workers`: `True` where there are workers.
    > - `logging_nan_inf_filter`: `False`; a loss that is not a number is shown as such.
    > - `ddp_find_unused_parameters`: `False`; the trainer freezes what a batch does not use.
    > - `accelerator_config`: with `non_blocking` where batches are pinned; else each waits for the step before it.
    """

    do_train: bool | None = flag(None, TRAINING, "Train. Default: yes, unless only others of the three are given.")
    do_eval: bool | None = flag(
        None, TRAINING, "Evaluate at the end. Default: yes, unless only others of the three are given."
    )
    do_predict: bool = flag(False, TRAINING, "Measure the model on --test_file at the very end. Default: no.")
    remove_unused_columns: bool = flag(False, TRAINER, "Must stay False: the collator reads every column of a row.")
    logging_nan_inf_filter: bool = flag(
        False, TRAINER, "Log the average loss in place of one that is NaN or infinite."
    )
    ddp_find_unused_parameters: bool | None = flag(
        False, TRAINER, "Search every step for parameters without gradient; none are left to find."
    )
    dataloader_num_workers: int = flag(
        default_num_workers,
        TRAINER,
        "Loader processes per training process. Default: half its share of the cores, 1 to 8.",
    )
    dataloader_persistent_workers: bool | None = flag(
        None, TRAINER, "Keep loader processes between epochs. Default: yes if there are any."
    )
    overwrite_output_dir: bool = flag(
        False, TRAINING, "Start over in a non-empty --output_dir instead of resuming its run."
    )
    text_learning_rate: float | None = flag(None, TRAINING, TOWER_RATE.format("text"))
    audio_learning_rate: float | None = flag(None, TRAINING, TOWER_RATE.format("audio"))
    video_learning_rate: float | None = flag(None, TRAINING, TOWER_RATE.format("video"))
    layer_decay: float | None = flag(
        None,
        TRAINING,
        "Layer-wise learning rate decay: factor from each layer of a tower to the one below, up to 1. Default: none.",
        above=0,
        at_most=1,
        remedy="give a factor above 0, up to 1 (no decay)",
    )
    gradient_checkpointing_towers: list[str] = flag(
        [],
        TRAINING,
        "Activation (gradient) checkpointing in these towers: their layers run again in the backward pass. Default: "
        "none.",
        choices=(*BUILT_IN_MODALITIES, "fusion"),
    )
    early_stopping_patience: int | None = flag(
        None,
        TRAINING,
        "Stop after this many evaluations without a better --metric_for_best_model. Default: never.",
    )
    on_bad_sample: Literal["replace", "skip", "fail"] = flag(
        "replace",
        DATA,
        "What to do with a training sample that cannot be read: replace it by another one, skip it (its row stays "
        "empty), or fail.",
    )
    max_bad_fraction: float = flag(
        MAX_BAD_FRACTION,
        DATA,
        "Stop when more than this fraction of the training samples read so far, at least 100, cannot be read.",
        share=True,
    )
    sample_timeout_seconds: float = flag(
        SAMPLE_TIMEOUT_SECONDS,
        DATA,
        "With loader processes: seconds after which a file counts as unreadable; 0: no limit.",
        **LIMIT,
    )
    loader_memory_gigabytes: float = flag(
        LOADER_MEMORY_GIGABYTES,
        DATA,
        "With loader processes: GB that a process may grow by for a file before the file counts as unreadable; 0: no "
        "limit.",
        **LIMIT,
    )
    max_nan_steps: int = flag(
        20,
        TRAINING,
        "Stop after this many consecutive steps with a NaN or infinite gradient; each of them is skipped.",
        at_least=1,
        remedy="give 1 or more",
    )
    contrastive_chunk_size: int | None = flag(
        None,
        TRAINING,
        "Gradient caching: rows encoded at a time, so that large contrastive batches need the memory of small ones, "
        "at the cost of encoding twice. Default: the whole batch.",
        at_least=1,
        remedy="give 1 or more rows, or leave it out to encode a batch at once",
    )

    def __post_init__(self):
        asked = (self.do_train, self.do_eval)
        train = asked[0] if asked[0] is not None else not (asked[1] or self.do_predict)
        evaluate = asked[1] if asked[1] is not None else not (asked[0] or self.do_predict)
        self.do_train, self.do_eval = train, evaluate
        if self.dataloader_persistent_workers is None:
            self.dataloader_persistent_workers = self.dataloader_num_workers > 0
        if self.remove_unused_columns:
            raise InputError("--remove_unused_columns must stay False: the collator reads every column of a row.")
        defaults = {
            f.name: f.default if f.default_factory is MISSING else f.default_factory()
            for f in fields(self)
            if f.name in WITHOUT_EFFECT
        }
        if given := [f"--{name}" for name, default in defaults.items() if getattr(self, name) != default]:
            raise InputError(
                f"{', '.join(given)} can have no effect: losses and evaluation are those of the models here. Leave "
                "that out."
            )
        check_bounds(self)
        if self.gradient_checkpointing_towers and self.activation_checkpointing:
            raise InputError(
                "--activation_checkpointing is for the whole model, --gradient_checkpointing_towers for the towers "
                "that it names. Give one of the two."
            )
        if self.bf16 and not self.use_cpu:  # type: ignore[has-type]
            if not torch.accelerator.is_available():
                self.use_cpu = True  # where bf16 works; `TrainingArguments` would ask for this flag
            elif torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
                raise InputError(
                    f"--bf16 needs a GPU that computes in bf16 (NVIDIA Ampere or newer), and this is a "
                    f"{torch.cuda.get_device_name()}. Use --fp16 True, or leave both out to compute in fp32."
                )
        leave_store_of_launcher(self.ddp_timeout)
        is_configured = self.accelerator_config is not None
        super().__post_init__()
        if self.fp16 and self.precision == "fp32" and self.process_index == 0:
            logger.warning(
                "--fp16 needs a GPU: on the CPU this run computes in fp32. Leave it out, or use --bf16 True."
            )
        if self.n_gpu > 1:  # which `Trainer` would put under `DataParallel`, that cannot split the counts of a step
            logger.warning(
                f"One process uses one GPU: cuda:0 of the {self.n_gpu} here. For all of them: torchrun "
                f"--nproc_per_node {self.n_gpu} train.py ..., or accelerate launch --config_file "
                f"configs/accelerate/multi_gpu.yaml --num_processes {self.n_gpu} train.py ..."
            )
            self._n_gpu = 1
        if self.activation_checkpointing_kwargs and not self.activation_checkpointing:
            raise InputError(
                "--activation_checkpointing_kwargs can have no effect without --activation_checkpointing True; give "
                "that too, or leave both out."
            )
        if self.contrastive_chunk_size is not None and self.torch_compile:
            raise InputError(
                "--contrastive_chunk_size repeats each chunk with the random numbers of its first pass, which "
                "torch.compile does not follow. Leave one of --contrastive_chunk_size and --torch_compile out."
            )
        if self.contrastive_chunk_size is not None and self.has_reentrant_checkpoints:
            raise InputError(
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
            raise InputError(
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
    def evaluates(self) -> bool:
        """Whether the run evaluates, at its end or on the way."""
        return self.do_eval or self.eval_strategy != "no"

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
        raise InputError(
            f"--decode_device cuda is for a model on a GPU, and this one is trained on {args.device}; leave out "
            "--decode_device or --use_cpu."
        )
    if args.dataloader_num_workers and args.dataloader_multiprocessing_context == "fork":
        raise InputError(
            "--decode_device cuda: CUDA does not work in a process that was forked. Give "
            "--dataloader_multiprocessing_context spawn, or --dataloader_num_workers 0 to decode in the main process."
        )
    if args.dataloader_num_workers and args.dataloader_multiprocessing_context is None:
        args.dataloader_multiprocessing_context = "spawn"
    args.dataloader_pin_memory = False
    args.accelerator_config.non_blocking = False

"""Training arguments: those of `transformers`, with defaults that suit loading media, and further ones."""

import os
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

import torch
from transformers import SchedulerType, TrainingArguments
from transformers.utils import logging

from simple_multimodal.cores import available_cores
from simple_multimodal.defaults import LOADER_MEMORY_GIGABYTES, MAX_BAD_FRACTION, SAMPLE_TIMEOUT_SECONDS, Precision
from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.glossary import LOWER_IS_BETTER
from simple_multimodal.evaluation.precision import effective_precision
from simple_multimodal.flags import DATA, TRAINER, TRAINING, check_bounds, flag
from simple_multimodal.modalities import BUILT_IN_MODALITIES
from simple_multimodal.training.rendezvous import leave_store_of_launcher

logger = logging.get_logger(__name__)

TOWER_RATE = "Learning rate of the {} tower. Default: --learning_rate."

RATED_TOWERS = (*BUILT_IN_MODALITIES, "backbone")
"""Towers that may have a learning rate of their own."""

LIMIT: dict[str, Any] = {"at_least": 0, "remedy": "give a number above 0, or 0 for no limit"}
"""Bounds of the limits on time and memory per file."""

WITHOUT_EFFECT = (
    *("average_tokens_across_devices", "neftune_noise_alpha", "use_cache", "label_names"),
    *("prediction_loss_only", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object"),
    *("include_for_metrics", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval"),
    "length_column_name",
)
"""Arguments of `transformers` that have no effect: losses and evaluation are computed differently here."""


def default_num_workers() -> int:
    """Return the number of loader processes per training process: half of its share of the cores, one to eight."""
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(8, max(1, available_cores() // (2 * local_processes)))


@dataclass
class MultimodalTrainingArguments(TrainingArguments):
    """
    Arguments of [`MultimodalTrainer`].

    > NOTE These parameters have default values different from [`~transformers.TrainingArguments`]:
    > - `do_train`, `do_eval`: both `True`, unless one of them or `do_predict` is given.
    > - `remove_unused_columns`: `False`; the collator needs every column of a row.
    > - `dataloader_num_workers`: half of this process's share of the cores, one to eight.
    > - `dataloader_persistent_workers`: `True` if there are workers.
    > - `logging_steps`: 10, so that short runs also print losses. `eval_steps` follows it unless it is given.
    > - `logging_nan_inf_filter`: `False`; losses that are NaN or infinite are logged as such.
    > - `ddp_find_unused_parameters`: `False`; the trainer freezes what a batch does not use.
    > - `accelerator_config`: with `non_blocking` if batches are pinned; otherwise each waits for the previous step.
    """

    do_train: bool | None = flag(
        None, TRAINING, "Whether to train. Default: yes, unless only --do_eval or --do_predict is given."
    )
    do_eval: bool | None = flag(
        None,
        TRAINING,
        "Whether to evaluate at the end. Default: yes, unless only --do_train or --do_predict is given.",
    )
    do_predict: bool = flag(False, TRAINING, "Whether to evaluate the final model on --test_file. Default: no.")
    remove_unused_columns: bool = flag(False, TRAINER, "Must be False: the collator reads every column of a row.")
    logging_steps: float = flag(10, TRAINER, "Log every N optimizer steps; below 1: a fraction of all steps.")
    logging_nan_inf_filter: bool = flag(False, TRAINER, "Log the average loss instead of NaN and infinite losses.")
    ddp_find_unused_parameters: bool | None = flag(
        False,
        TRAINER,
        "Search for parameters without gradients in every step; not needed, as the trainer freezes them.",
    )
    dataloader_num_workers: int = flag(
        default_num_workers,
        TRAINER,
        "Number of loader processes per training process. Default: half of its share of the cores, 1 to 8.",
    )
    dataloader_persistent_workers: bool | None = flag(
        None, TRAINER, "Keep loader processes between epochs. Default: yes if there are any."
    )
    overwrite_output_dir: bool = flag(
        False, TRAINING, "Start over in a non-empty --output_dir instead of resuming the run in it."
    )
    text_learning_rate: float | None = flag(None, TRAINING, TOWER_RATE.format("text"))
    audio_learning_rate: float | None = flag(None, TRAINING, TOWER_RATE.format("audio"))
    video_learning_rate: float | None = flag(None, TRAINING, TOWER_RATE.format("video"))
    pose_learning_rate: float | None = flag(None, TRAINING, TOWER_RATE.format("pose"))
    backbone_learning_rate: float | None = flag(None, TRAINING, TOWER_RATE.format("backbone"))
    layer_decay: float | None = flag(
        None,
        TRAINING,
        "Layer-wise learning rate decay: factor from each layer of a tower to the one below it. Default: none.",
        above=0,
        at_most=1,
        remedy="give a factor above 0, up to 1 (no decay)",
    )
    gradient_checkpointing_towers: list[str] = flag(
        [],
        TRAINING,
        "Towers with gradient checkpointing: their activations are recomputed in the backward pass. Default: none.",
        choices=(*BUILT_IN_MODALITIES, "fusion", "backbone"),
    )
    early_stopping_patience: int | None = flag(
        None,
        TRAINING,
        "Stop after N evaluations without improvement of --metric_for_best_model. Default: never.",
    )
    on_bad_sample: Literal["replace", "skip", "fail"] = flag(
        "replace",
        DATA,
        "What to do with a training sample that cannot be read: replace it with another sample, skip it (its row "
        "stays empty), or fail.",
    )
    max_bad_fraction: float = flag(
        MAX_BAD_FRACTION,
        DATA,
        "Stop if more than this fraction of the training samples so far (counted as at least 100) cannot be read.",
        share=True,
    )
    sample_timeout_seconds: float = flag(
        SAMPLE_TIMEOUT_SECONDS,
        DATA,
        "Time limit for reading a file in a loader process, in seconds; 0: no limit.",
        **LIMIT,
    )
    loader_memory_gigabytes: float = flag(
        LOADER_MEMORY_GIGABYTES,
        DATA,
        "Memory limit for reading a file in a loader process, in GB; 0: no limit.",
        **LIMIT,
    )
    max_nan_steps: int = flag(
        20,
        TRAINING,
        "Stop after N consecutive steps with NaN or infinite gradients; such steps are skipped.",
        at_least=1,
        remedy="give 1 or more",
    )
    contrastive_chunk_size: int | None = flag(
        None,
        TRAINING,
        "Number of rows to encode at a time (gradient caching): large contrastive batches fit into the memory of "
        "small ones, but are encoded twice. Default: the whole batch.",
        at_least=1,
        remedy="give 1 or more, or leave it out to encode whole batches",
    )

    def __post_init__(self):
        asked = (self.do_train, self.do_eval)
        train = asked[0] if asked[0] is not None else not (asked[1] or self.do_predict)
        evaluate = asked[1] if asked[1] is not None else not (asked[0] or self.do_predict)
        self.do_train, self.do_eval = train, evaluate
        if self.dataloader_persistent_workers is None:
            self.dataloader_persistent_workers = self.dataloader_num_workers > 0
        if self.remove_unused_columns:
            raise InputError("--remove_unused_columns must be False: the collator reads every column of a row.")
        defaults = {
            f.name: f.default if f.default_factory is MISSING else f.default_factory()
            for f in fields(self)
            if f.name in WITHOUT_EFFECT
        }
        if given := [f"--{name}" for name, default in defaults.items() if getattr(self, name) != default]:
            raise InputError(
                f"{', '.join(given)} would have no effect: losses and evaluation are computed differently here. "
                "Leave out what is named."
            )
        check_bounds(self)
        if self.gradient_checkpointing_towers and self.activation_checkpointing:
            raise InputError(
                "--activation_checkpointing applies to the whole model, --gradient_checkpointing_towers to single "
                "towers. Give one of the two."
            )
        if self.bf16 and not self.use_cpu:  # type: ignore[has-type]
            if not torch.accelerator.is_available():
                self.use_cpu = True  # the CPU supports bf16; `TrainingArguments` would ask for this flag
            elif torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
                raise InputError(
                    f"--bf16 needs a GPU that supports bf16 (NVIDIA Ampere or newer), but this is a "
                    f"{torch.cuda.get_device_name()}. Use --fp16 True, or leave both out to compute in fp32."
                )
        leave_store_of_launcher(self.ddp_timeout)
        is_configured = self.accelerator_config is not None
        if self.greater_is_better is None and self.metric_for_best_model is not None:  # type: ignore[has-type]
            self.greater_is_better = not self.metric_for_best_model.endswith(LOWER_IS_BETTER)
        super().__post_init__()
        if self.fp16 and self.precision == "fp32" and self.process_index == 0:
            logger.warning(
                "--fp16 needs a GPU; on the CPU this run computes in fp32. Leave it out, or use --bf16 True."
            )
        if self.n_gpu > 1:  # `Trainer` would use `DataParallel`, which cannot split the counts of a step
            logger.warning(
                f"A process uses one GPU: cuda:0 of the {self.n_gpu} here. To use all of them: torchrun "
                f"--nproc_per_node {self.n_gpu} train.py ..., or accelerate launch --config_file "
                f"configs/accelerate/multi_gpu.yaml --num_processes {self.n_gpu} train.py ..."
            )
            self._n_gpu = 1
        if self.activation_checkpointing_kwargs and not self.activation_checkpointing:
            raise InputError(
                "--activation_checkpointing_kwargs would have no effect without --activation_checkpointing True; set "
                "it too, or leave both out."
            )
        if self.contrastive_chunk_size is not None and self.torch_compile:
            raise InputError(
                "--contrastive_chunk_size encodes each chunk twice with the same random numbers, which torch.compile "
                "does not support. Leave out --contrastive_chunk_size or --torch_compile."
            )
        if self.contrastive_chunk_size is not None and self.has_reentrant_checkpoints:
            raise InputError(
                "--contrastive_chunk_size needs non-reentrant activation checkpointing; leave use_reentrant out of "
                "--activation_checkpointing_kwargs."
            )
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # torch would warn about it
        if self.dataloader_pin_memory and not is_configured:
            self.accelerator_config.non_blocking = True
        if self.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
            logger.warning(
                f"--train_sampling_strategy {self.train_sampling_strategy} is ignored: lengths are not known before "
                "samples are read. Samples are shuffled."
            )
        launched = {"RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"} & os.environ.keys()
        if "ACCELERATE_USE_CPU" in os.environ and "MASTER_PORT" in os.environ and not launched:
            logger.warning(
                "`accelerate launch --cpu` starts one process only, whatever --num_processes is, unless an MPI host "
                "file is given. To start several processes on a CPU: accelerate launch --config_file "
                "configs/accelerate/cpu.yaml --num_processes N train.py --use_cpu ..., or torchrun --nproc_per_node N "
                "train.py --use_cpu ..."
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
        """Whether activation checkpointing is reentrant, torch's older implementation."""
        return bool((self.activation_checkpointing_kwargs or {}).get("use_reentrant", False))

    @property
    def precision(self) -> Precision:
        """Precision that the model computes in, both in training and in evaluation."""
        return effective_precision(bf16=self.bf16, fp16=self.fp16, device_type=self.device.type)

    @property
    def evaluates(self) -> bool:
        """Whether the run evaluates, during training or at the end."""
        return self.do_eval or self.eval_strategy != "no"

    @property
    def selects(self) -> bool:
        """Whether evaluations during training determine the final weights."""
        reduces_rate = self.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU
        stops_early = self.early_stopping_patience is not None
        return bool(self.do_train) and (self.load_best_model_at_end or stops_early or reduces_rate)

    @property
    def tower_learning_rates(self) -> dict[str, float]:
        """Learning rates that differ from `learning_rate`, by tower."""
        return {tower: rate for tower in RATED_TOWERS if (rate := vars(self)[f"{tower}_learning_rate"]) is not None}


def load_on_gpu(args: MultimodalTrainingArguments) -> None:
    """
    Set up loaders whose frames are decoded on a GPU: spawn processes, and do not pin memory.

    Raises:
        ValueError: If loader processes would be forked, or the model is not on a GPU.
    """
    if args.device.type != "cuda":
        raise InputError(
            f"--decode_device cuda needs a model on a GPU, but this one is on {args.device}; leave out "
            "--decode_device or --use_cpu."
        )
    if args.dataloader_num_workers and args.dataloader_multiprocessing_context == "fork":
        raise InputError(
            "--decode_device cuda: CUDA does not work in forked processes. Use --dataloader_multiprocessing_context "
            "spawn, or --dataloader_num_workers 0 to decode in the main process."
        )
    if args.dataloader_num_workers and args.dataloader_multiprocessing_context is None:
        args.dataloader_multiprocessing_context = "spawn"
    args.dataloader_pin_memory = False
    args.accelerator_config.non_blocking = False

"""Trainer for several modalities: exact losses over processes, per-sample randomness, and evaluation that counts each
row once.
"""

import concurrent.futures
import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import torch
from accelerate.utils import send_to_device
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_callback import ExportableState, TrainerCallback, TrainerControl
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, TrainOutput
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, logging

from simple_multimodal.data.bad_samples import check_files, check_poses
from simple_multimodal.data.batch_reader import BatchReader, OnBadSamplePolicy, RowKeys, SupervisedReader
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.loader_processes import protected
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.sampler import EpochSampler
from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.precision import precision_mismatch
from simple_multimodal.evaluation.protocols import prepared_protocol, prepared_split
from simple_multimodal.evaluation.result_files import write_whole
from simple_multimodal.inference.pipeline import Pipeline
from simple_multimodal.modalities import Modality
from simple_multimodal.models.configuration import CONTRASTIVE_PAIRS
from simple_multimodal.models.distributed import decide_in_first_process, leave_process_group, sum_over_processes
from simple_multimodal.models.loading import without_bars
from simple_multimodal.models.lora import ADAPTER_FOLDER, merge_lora, save_adapter
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor
from simple_multimodal.tasks.registry import Evaluation, Measuring, Rows, Task, task_of
from simple_multimodal.tasks.training_clips import TrainingClips
from simple_multimodal.training import sharding
from simple_multimodal.training.arguments import MultimodalTrainingArguments, load_on_gpu
from simple_multimodal.training.checkpoints import (
    STAGING,
    STATE_FILE,
    WRITE_ERRORS,
    begin_run,
    clear_staging,
    newest_checkpoint,
    problem_of,
    publish,
    rotate,
    seal,
)
from simple_multimodal.training.console import ConsoleCallback, Speed, results_table, training_line
from simple_multimodal.training.features import load_features
from simple_multimodal.training.learning_rates import parameter_rates, set_learning_rates
from simple_multimodal.training.quarantine import Quarantine
from simple_multimodal.training.results import write_card, write_results
from simple_multimodal.training.run_control import EXIT_REQUEUE, EarlyStopping, RunControl
from simple_multimodal.training.run_record import (
    changed_arguments,
    describe_training,
    earlier_parts,
    read_run_record,
    write_run_record,
)
from simple_multimodal.training.summary import RunSummary

logger = logging.get_logger(__name__)

TEMPERATURES = ("logit_scale", "logit_bias", "temperature")
"""Names of the parameters of contrastive losses, to which weight decay must not apply."""

SETTLE_STEPS = 10
"""Number of steps between exchanges of bad samples among processes."""


class LimitTemperature(TrainerCallback):
    """Keeps the temperature of the contrastive loss within its limits."""

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        model.limit_temperature()


@torch.no_grad()
def align_parameters(model: torch.nn.Module) -> None:
    """
    Move every parameter and buffer to newly allocated, aligned memory.

    `from_pretrained` leaves weights at addresses that depend on their position in the file. CPU kernels round
    differently at addresses that are not a multiple of their vector size, so a resumed run would differ in the last
    bit from one that started with weights in allocated memory.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


class MultimodalTrainer(Trainer):
    """
    [`~transformers.Trainer`] with the following additions:

    - every objective is divided by its own count over all processes and accumulated batches, and logged by name;
    - the training order and all random choices about a sample depend only on `(seed, epoch, sample)`;
    - a sample that cannot be read is replaced or skipped, and listed in `quarantine.jsonl`;
    - evaluation counts each row once, for any batch size and number of processes;
    - a learning rate per tower and layer; the share of time spent waiting for data; a summary of what is trained;
    - LoRA adapters, which are merged into the weights of the final saved model;
    - atomic checkpoints, which are written to the disk in the background; resumed runs with the results of
      uninterrupted ones; handling of SIGTERM, Ctrl-C and gradients that are not finite, see [`RunControl`].

    Args:
        model ([`TowerModel`]): Model with `count_items`, such as `MultimodalFor…` and `AlproFor…` models.
        args ([`MultimodalTrainingArguments`]): Arguments of the run.
        processor ([`MultimodalProcessor`]): Processor that turns rows into tensors; it is saved with the model.
        train_dataset, eval_dataset (*optional*): Rows: a [`RowDataset`], or anything that [`Task.open_rows`] takes,
            such as the path of a manifest.
        roots (*optional*): Folders of the files, for rows that are not a [`RowDataset`], see there.
        follow_links (`bool`, *optional*, defaults to `False`): Whether to follow links that lead out of the roots,
            likewise.
        features (`str`, *optional*): Folder of features that replace frozen towers, see [`load_features`].
        collator_settings (`Mapping`, *optional*): Further arguments of [`MultimodalCollator`], for both training and
            evaluation.
        drop_modalities (`Sequence[str]`, *optional*): Modalities to leave out in evaluation, as if the rows lacked
            them.
        task ([`Task`], *optional*): Task that evaluates the model; by default the one in its config, without options.
        run_record (`dict`, *optional*): Content of `run.json`, saved in every checkpoint. With it, a run that starts
            over removes older checkpoints in the output folder. By default it is made from the arguments.
        callbacks (`list[TrainerCallback]`, *optional*): Further callbacks.
    """

    control: TrainerControl
    _tr_loss: torch.Tensor
    _total_loss_scalar: float
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel,
        args: MultimodalTrainingArguments,
        *,
        processor: MultimodalProcessor,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | dict[str, Rows] | None = None,
        roots: Any = None,
        follow_links: bool = False,
        task: Task | None = None,
        features: str | os.PathLike[str] | None = None,
        collator_settings: Mapping[str, Any] = MappingProxyType({}),
        drop_modalities: Sequence[Modality] = (),
        run_record: dict | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        self.task = task or task_of(model.config.task, type(model).__name__)()
        model.config.task = self.task.name
        open_rows = functools.partial(
            self.task.open_rows, modalities=processor.modalities, roots=roots, follow_links=follow_links
        )
        train_dataset = None if train_dataset is None else open_rows(train_dataset)
        eval_sets: RowDataset | dict[str, RowDataset] | None = None
        if isinstance(eval_dataset, dict):
            eval_sets = {name: open_rows(rows) for name, rows in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_sets = open_rows(eval_dataset)
        used = [train_dataset, *(eval_sets.values() if isinstance(eval_sets, dict) else [eval_sets])]
        for dataset in used:
            if dataset is not None:
                self.task.check_rows(model, dataset)
                check_files(dataset)
        settings: dict[str, Any] = {
            "seed": args.seed,
            "targets": self.task.build_targets(model, processor),
            **collator_settings,
        }
        if features is not None:
            decoder = {name: settings[name] for name in ("video_backend", "decode_device") if name in settings}
            settings["features"] = load_features(
                features, model, processor, used, is_trained=bool(args.do_train), **decoder
            )
        if (poses := processor.part("pose")) is not None and "pose" not in settings.get("features", {}):
            for dataset in used:
                if dataset is not None:
                    check_poses(dataset, poses)
        if args.process_index == 0:
            named_sets = eval_sets if isinstance(eval_sets, dict) else {"Evaluation": eval_sets}
            for name, rows in {"Training": train_dataset, **named_sets}.items():
                if rows is not None and (warning := self.task.warning_about(model, rows)) is not None:
                    logger.warning(f"{name} rows: {warning}")
        data_collator = MultimodalCollator(processor, training=True, **settings)
        eval_collator = MultimodalCollator(processor, drop_modalities=drop_modalities, **settings)
        self.run_record: dict[str, Any] = run_record or describe_training(model, args, train_dataset, eval_sets)
        self.owns_folder = run_record is not None
        self.evaluation_record: dict[str, Any] | None = None
        """Description of this run if it only evaluated, as another one had trained the model: see `run_record`."""
        self.is_saved = False
        """Whether this trainer has saved the model into the output folder."""
        self.speed = Speed()
        self.eval_collator = eval_collator
        self.last_evaluation: Evaluation | None = None
        self._sums: dict[str, torch.Tensor] = {}
        self.run_control = RunControl(args.max_nan_steps)
        self._sealing: concurrent.futures.Future | None = None  # of the last checkpoint
        self._save_error: BaseException | None = None  # of the last checkpoint
        self._sums_start = 0  # the step before the first one in the sums
        self._counter: PreTrainedModel | None = None  # the unwrapped model; unwrapping visits every module
        self.processor = processor
        self.args = args
        model.check_precision("fp16" if args.fp16 else args.precision)  # on a CPU, too
        if args.label_smoothing_factor > 0:
            model.smooth_labels(args.label_smoothing_factor)
        self._quarantine = self._make_quarantine(train_dataset, starts_over=False)
        if eval_collator.decode_device != "cpu":
            load_on_gpu(args)
        align_parameters(model)
        model.checkpoint_activations(args.gradient_checkpointing_towers)
        if args.enable_jit_checkpoint:  # which would replace the handler of SIGTERM in `Trainer.__init__`
            raise InputError(
                "enable_jit_checkpoint is not supported: this trainer handles SIGTERM itself and saves a checkpoint "
                "after the same step in all processes. Leave it out."
            )
        # `Trainer` asks every processor for special tokens, even one without a tokenizer.
        super().__init__(
            model,
            args,
            data_collator=self._reader(train_dataset, data_collator, args.on_bad_sample) if train_dataset else None,
            train_dataset=train_dataset,
            eval_dataset=eval_sets,
            processing_class=processor if processor.tokenizer is not None else None,
            callbacks=callbacks,
        )
        self.label_smoother = None  # the model smooths labels itself
        if args.contrastive_chunk_size is not None:
            self._check_chunks()
        if train_dataset is not None:
            if not self.is_deepspeed_enabled:  # DeepSpeed may partition the weights
                self._freeze_unreached(data_collator)
            parameter_rates(model, args, args.learning_rate)  # validate before anything is written
            self._check_checkpointed_towers()
        if model.config.lora is not None and args.has_reentrant_checkpoints:
            raise InputError(
                "LoRA needs non-reentrant activation checkpointing: reentrant checkpoints give no gradients to layers "
                "whose inputs have none. Leave use_reentrant out of activation_checkpointing_kwargs."
            )
        if not args.do_train and args.should_log:
            source = self.run_record["arguments"].get("model_name_or_path")
            if (line := precision_mismatch(source, args.precision)) is not None:
                logger.warning(line)
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStopping(args.early_stopping_patience))
        self.add_callback(LimitTemperature)
        self.add_callback(self.run_control)
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            self.add_callback(RunSummary(self.run_record))
        elif model.config.lora is not None:
            raise InputError(
                "LoRA does not work with FSDP and DeepSpeed: every process needs all weights. Train without LoRA, or "
                "start one process per device with torchrun or accelerate launch "
                "(configs/accelerate/multi_gpu.yaml)."
            )
        stock = PrinterCallback if args.disable_tqdm else ProgressCallback  # a notebook has another one
        if self.pop_callback(stock) is not None:  # added after the summary, whose table is printed above the bar
            self.add_callback(ConsoleCallback(self, shows_bars=not args.disable_tqdm))

    # ---- Data ----
    def _reader(
        self,
        dataset: RowDataset,
        collator: MultimodalCollator,
        on_bad_sample: OnBadSamplePolicy,
    ) -> SupervisedReader:
        """Return the reader that makes batches from keys of rows."""
        return SupervisedReader(
            BatchReader(dataset, collator, on_bad_sample=on_bad_sample),
            timeout_seconds=self.args.sample_timeout_seconds,
            memory_gigabytes=self.args.loader_memory_gigabytes,
        )

    def _make_quarantine(self, train_dataset: RowDataset | None, *, starts_over: bool) -> Quarantine:
        return Quarantine(
            self.args.output_dir,
            num_rows=0 if train_dataset is None else len(train_dataset),
            starts_over=starts_over,
            writes=self.args.process_index == 0,
            max_bad_fraction=self.args.max_bad_fraction,
        )

    def _get_dataloader(self, dataset: RowDataset, *args, **kwargs) -> DataLoader:
        return super()._get_dataloader(RowKeys(dataset), *args, **kwargs)

    def _get_train_sampler(self, train_dataset: RowKeys | None = None) -> EpochSampler:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        shuffle = self.args.train_sampling_strategy != "sequential"
        return EpochSampler(train_dataset or RowKeys(self.train_dataset), seed=seed, shuffle=shuffle)

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader of batches in the order of the sampler, which does not use the global random generators."""
        loader = super().get_train_dataloader()
        base = protected(loader.base_dataloader)  # the loader that accelerate wraps
        # Otherwise a loader takes a seed from the global generator: once with persistent workers, else in each epoch.
        base.generator = torch.Generator()
        return loader

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        # Otherwise a run that resumes at its last step, or where it stopped early, would train another step.
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            return [], None
        started = time.perf_counter()
        batches, counts = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.speed.waited += time.perf_counter() - started
        self.speed.samples += sum(len(batch["row_ids"]) for batch in batches) * self.args.world_size
        return batches, counts

    # ---- Losses ----
    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> dict[str, torch.Tensor] | None:
        if not batch_samples:
            return None
        for batch in batch_samples:
            bad_samples = batch.pop("bad_samples", ())
            num_read = len(batch["row_ids"])
            if bad_samples:  # if no replacement could be read either, the place of a bad row is empty
                bad_rows = {sample.row for sample in bad_samples}
                num_read = sum(row not in bad_rows for row in batch["row_ids"].tolist())
            self._quarantine.add(bad_samples, num_read + len(bad_samples), self.state.global_step + 1)
        if self._counter is None:
            self._counter = self.accelerator.unwrap_model(self.model)
        counts = [self._counter.count_items(batch) for batch in batch_samples]
        names = list(counts[0])
        totals = torch.stack([torch.stack([count[name] for name in names]).to(device) for count in counts]).sum(dim=0)
        is_terminated = torch.full((1,), self.run_control.signal is not None, dtype=totals.dtype, device=device)
        totals = sum_over_processes(torch.cat([totals, is_terminated]))
        self.run_control.watch(totals[-1:])
        return dict(zip(names, totals[:-1], strict=True))

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        whole = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else torch.as_tensor(grad_norm)
        self.run_control.skip_unless_finite(
            whole, self.optimizer.optimizer, is_scaled=self.accelerator.scaler is not None
        )
        return grad_norm

    def _freeze_unreached(self, collator: MultimodalCollator) -> None:
        """Call [`TowerModel.freeze_unreached`], before the model is wrapped and the optimizer is made."""
        device = next(self.model.parameters()).device
        batch = send_to_device(collator.empty_batch(2), device)
        with self.accelerator.autocast():  # some attention kernels only support half precision
            self.model.freeze_unreached(batch)

    def _check_checkpointed_towers(self) -> None:
        """Check that `gradient_checkpointing_towers` are trained; other towers keep no activations."""
        for name in self.args.gradient_checkpointing_towers:
            is_trained = any(parameter.requires_grad for parameter in self.model.towers[name].parameters())
            if not is_trained and name != "fusion":  # gradients pass through it
                raise InputError(
                    f"gradient_checkpointing_towers would have no effect on {name}: the tower is not trained (it is "
                    "frozen, or no objective reaches it), so its activations are not kept. Leave it out."
                )

    def _check_chunks(self) -> None:
        """Check that `contrastive_chunk_size` works in this run and has a benefit."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise InputError(
                "`contrastive_chunk_size` does not work with FSDP and DeepSpeed: every process needs all weights. "
                "Leave it out, or start one process per device with torchrun or accelerate launch."
            )
        weights = self.model.loss_weights
        if not weights.keys() & {*CONTRASTIVE_PAIRS, "matching"}:
            raise InputError(
                "`contrastive_chunk_size` is for the contrastive objectives and matching, which this model does not "
                f"train (it has {', '.join(weights)}). Use `gradient_accumulation_steps`, which "
                "computes the same gradients faster."
            )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        size = self.args.contrastive_chunk_size
        chunks = {} if size is None else {"chunk_size": size}  # other models do not take it
        outputs = model(**inputs, num_items=num_items_in_batch, **chunks)
        self._collect(outputs)
        # Gradients are averaged over processes, but this loss is a share of a sum.
        loss = outputs.loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _collect(self, outputs) -> None:
        """Add up the values of the next log on the device, without waiting for it in every step."""
        if not self._sums:
            self._sums_start = self.state.global_step
        for name, value in outputs.losses.items():
            self._sums[f"{name}_loss"] = self._sums.get(f"{name}_loss", torch.zeros_like(value)) + value
        for name, value in outputs.metrics.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_loss" in logs:  # `Trainer` divides by the steps since the last resume
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        if "loss" in logs:
            self._tr_loss = torch.zeros_like(self._tr_loss)  # `Trainer` subtracts it from itself, which keeps NaN
            nan_steps = int(self.run_control.nan_steps[0])
            if nan_steps:
                logs["nan_steps"] = nan_steps
        if "loss" in logs and self._sums:
            steps = max(self.state.global_step - self._sums_start, 1)
            for name, total in self._sums.items():
                total = sum_over_processes(total)
                if total.ndim:
                    logs[name] = float(total[0]) / max(float(total[1]), 1.0)
                else:
                    logs[name] = float(total) / steps
            self._sums = {}
            if self._quarantine.num_bad:
                logs["bad_samples"] = self._quarantine.num_bad
            logs |= self.speed.values()
            self.speed.restart()
        super().log(logs, start_time)

    def _maybe_log_save_evaluate(self, *args, **kwargs) -> None:
        # After every step; less often with several processes, as exchanging objects waits for the device.
        control, step = self.control, self.state.global_step
        if (
            self.args.world_size == 1
            or step % SETTLE_STEPS == 0
            or (control.should_save or control.should_evaluate or control.should_training_stop)
        ):
            self._quarantine.settle()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        """Train as [`Trainer.train`] does; `resume_from_checkpoint=True` resumes from the newest complete checkpoint.

        Returns:
            [`~transformers.trainer_utils.TrainOutput`]: Without metrics if no step was left to train.
        """
        if resume_from_checkpoint is True:
            newest = newest_checkpoint(self.args.output_dir)
            if newest is None:
                raise InputError(f"{self.args.output_dir!r} has no complete checkpoint to resume from.")
            resume_from_checkpoint = str(newest)
        self.accelerator.wait_for_everyone()  # until all have read the folder
        if self.is_world_process_zero():
            starts_over = self.owns_folder and resume_from_checkpoint is None
            record = self.run_record if resume_from_checkpoint is None else None  # see `_init_training_state`
            begin_run(self.args.output_dir, record, starts_over=starts_over)
        if resume_from_checkpoint is None:  # it was measured with other weights
            self._reset_measured_settings({})
        self._quarantine = self._make_quarantine(self.train_dataset, starts_over=resume_from_checkpoint is None)
        self._sums = {}
        self._counter = None
        self._save_error = None
        self.evaluation_record = None
        self._resumes_from = resume_from_checkpoint or None
        self.speed.restart()
        with self.run_control.listening(), concurrent.futures.ThreadPoolExecutor(max_workers=1) as self._sealer:
            result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if self.run_control.signal is not None:  # it came after the last step
            self._end_to_be_continued()
        result = result._replace(training_loss=result.metrics["train_loss"])
        return result if self.run_control.has_trained else result._replace(metrics={})

    def _init_training_state(self, max_steps: int, *args) -> tuple[int, int]:
        comparison = logging.get_logger("transformers.trainer_utils")
        comparison.disabled = True  # it warns about changed arguments, as `_continue` does
        try:
            begins_at = super()._init_training_state(max_steps, *args)
        finally:
            comparison.disabled = False
        stopping = [callback for callback in self.callback_handler.callbacks if isinstance(callback, EarlyStopping)]
        has_stopped = any(callback.has_stopped(self.state) for callback in stopping)
        self.run_control.is_complete = self.state.global_step >= max_steps or has_stopped
        if self._resumes_from is not None:
            self.state.compute_steps(self.args, max_steps)  # otherwise those of the checkpoint win
            self._continue(self._resumes_from)
        return begins_at

    def _continue(self, checkpoint: str) -> None:
        """Say what a resumed run does, and describe in `run.json` which arguments each part of its steps ran with."""
        step, max_steps = self.state.global_step, self.state.max_steps
        earlier = read_run_record(checkpoint) or self.run_record  # none if another trainer wrote the checkpoint
        changed = ", ".join(changed_arguments(earlier, self.run_record))
        if self.run_control.is_complete:
            done = f"{step:,} of {max_steps:,} steps" if step <= max_steps else f"{step:,} steps"
            done += ", then stopped early" if step < max_steps else ""
            line = (
                f"Already trained ({done}{f'; with other {changed}' if changed else ''}); to train on, increase "
                "--max_steps or --num_train_epochs; to start over, pass --overwrite_output_dir."
            )
            self.evaluation_record = dict(self.run_record)
            self.run_record |= earlier
        else:
            line = f"Resuming from {checkpoint}" + (
                f", which was started with other {changed}; this run continues with the new values, so it may not "
                "equal an uninterrupted one."
                if changed
                else "."
            )
            if parts := earlier_parts(earlier, self.run_record, step):
                self.run_record["earlier_parts"] = parts
        if self.is_world_process_zero():
            logger.warning(line)
            write_run_record(self.args.output_dir, self.run_record)

    def _finalize_training(self, *args) -> TrainOutput:
        self._finish_checkpoint()
        if self._resumes_from is not None and not self.run_control.has_trained:
            self._load_running(self._resumes_from)
        if self._save_error is not None:
            raise OSError(
                f"The last checkpoint could not be saved in {self.args.output_dir}: {self._save_error}. Run the "
                "same command to resume from the one before it."
            )
        if self.run_control.is_stopping:
            self._end_to_be_continued()
        return super()._finalize_training(*args)

    def _end_to_be_continued(self) -> NoReturn:
        if self.is_world_process_zero():
            cause = self.run_control.signal or "a signal to another process"
            place = "the checkpoint" if self.run_control.is_stopping else "the newest checkpoint, if any,"
            logger.warning(
                f"Stopped by {cause} after step {self.state.global_step}; run the same command to resume from {place} "
                f"in {self.args.output_dir}."
            )
        leave_process_group()
        raise SystemExit(EXIT_REQUEUE)

    # ---- Optimizer ----
    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Return the names of weights; as in CLIP, biases, norms and temperatures have no weight decay."""
        names = super().get_decay_parameter_names(model)
        return [name for name in names if name.rpartition(".")[2] not in TEMPERATURES]

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        towers = self.accelerator.unwrap_model(model or self.model)
        set_learning_rates(optimizer, parameter_rates(towers, self.args, optimizer.defaults["lr"]))
        return optimizer

    # ---- Evaluation ----
    def get_eval_dataloader(self, eval_dataset: str | RowDataset | None = None) -> Any:
        """Return the rows to evaluate. [`evaluation_loop`] reads them itself: each row in one process, and none
        repeated to fill a batch.
        """
        if eval_dataset is None or isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset] if isinstance(eval_dataset, str) else self.eval_dataset
        if not isinstance(eval_dataset, RowDataset):
            raise InputError("Evaluation needs an eval_dataset.")
        return eval_dataset

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate the rows with the task, divided among the processes; [`Trainer.evaluate`] does the rest."""
        rows: RowDataset = dataloader
        split = prepared_split(rows.manifest_file, rows.clip_cells())
        measuring = Measuring(
            benchmark=prepared_protocol(rows.manifest_file),
            with_losses=True,
            is_final=not self.is_in_train and metric_key_prefix != "test",  # pair files belong to evaluation rows
            train_set=self.train_dataset,
        )
        with self._evaluating() as model:
            evaluation = self.task.evaluate(self._pipeline(model), rows, measuring)
            # Test clips, or clips that lack a modality, must not change settings of the model.
            if split != "test" and metric_key_prefix != "test" and not self.eval_collator.drop_modalities:
                for name, value in evaluation.config_settings.items():
                    setattr(model.config, name, value)
        if self.is_world_process_zero():
            self._quarantine.add(evaluation.bad_samples, len(rows), self.state.global_step)
        self._quarantine.settle("evaluation")
        audio: AudioFeatureExtractor | None = self.eval_collator.processor.feature_extractor
        if audio is not None and audio.crop_rule is not None:
            evaluation.protocol += f"; {audio.crop_rule}"
        if self.eval_collator.decode_device != "cpu":
            evaluation.protocol += "; frames decoded by the GPU (NVDEC), not bit-equal to a CPU's"
        self.last_evaluation = evaluation
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in evaluation.metrics.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=evaluation.num_rows)

    def _pipeline(self, model: PreTrainedModel) -> Pipeline:
        """Return the pipeline of the task, as it will be used with the saved model."""
        return self.task.pipeline_class(
            model,
            self.eval_collator.processor,
            collator=self.eval_collator,
            batch_size=self.args.eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            # Never "replace": bad rows must count.
            on_bad_sample="fail" if self.args.on_bad_sample == "fail" else "skip",
            max_bad_fraction=None,
            sample_timeout_seconds=self.args.sample_timeout_seconds,
            loader_memory_gigabytes=self.args.loader_memory_gigabytes,
            precision=self.args.precision,
            on_batch=self._on_prediction_step,
        )

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[PreTrainedModel]:
        """Yield the model without wrappers, unsharded and in evaluation mode inside the context."""
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        with sharding.unsharded(model):
            yield model
        model.train(was_training)

    def _on_prediction_step(self, num_batches: int) -> None:
        self.callback_handler.eval_dataloader = range(num_batches)  # the progress bar uses its length
        self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

    # ---- Saving ----
    def _save_checkpoint(self, model, trial) -> None:
        """
        Stage a checkpoint; it is then hashed, synced and renamed in the background, see [`seal`].

        If that fails in any process, training continues with a warning, and tries again at the next save.
        """
        self._finish_checkpoint()
        self._save_step = self.state.global_step
        self.store_flos()
        final = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        best = final.with_name(f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
        if best == final or best.is_dir():
            self.state.best_model_checkpoint = str(best)
        staged = final.parent / STAGING / final.name
        error: BaseException | None = None
        parts: list[Callable[[str], None]] = [functools.partial(self.save_model, _internal_call=True)]
        if not self.args.save_only_model:
            parts += [self._save_optimizer_and_scheduler, self._save_scaler, self._save_rng_state]
        for write in (*parts, self._save_trainer_state):
            try:
                write(str(staged))
            except WRITE_ERRORS as failure:  # the other parts may need all processes
                error = error or failure
        if self._agree_on(error) is not None:
            if self.args.should_save:
                clear_staging(final.parent)
        elif self.args.should_save:
            keep = {final} | ({Path(self.state.best_model_checkpoint)} if self.state.best_model_checkpoint else set())
            self._sealing = self._sealer.submit(self._seal, staged, final, keep)
        if self.args.push_to_hub:
            self._finish_checkpoint()
            if self._save_error is None:
                self._push_from_checkpoint(str(final))

    def _seal(self, staged: Path, final: Path, keep: set[Path]) -> None:
        seal(staged, final)
        rotate(final.parent, self.args.save_total_limit, keep=keep)

    def _finish_checkpoint(self) -> None:
        """Wait until the last checkpoint is finished, or has failed, in every process."""
        error: BaseException | None = self._save_error
        if self._sealing is not None:
            error = self._sealing.exception()
            self._sealing = None
            clear_staging(self.args.output_dir)
        self._agree_on(error)

    def _agree_on(self, error: BaseException | None) -> BaseException | None:
        """Return in all processes an error of any process, and log it if it is new."""
        failed = torch.tensor([float(error is not None)], device=self.args.device)
        if not sum_over_processes(failed).item():
            self._save_error = None
        elif self._save_error is None:
            self._save_error = error or OSError("another process could not write its part")
            if error is not None or self.is_world_process_zero():
                logger.warning(
                    f"CHECKPOINT {self._save_step} COULD NOT BE SAVED in {self.args.output_dir}: {self._save_error}. "
                    "Training continues and tries again at the next save; older checkpoints are unchanged."
                )
        return self._save_error

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = sharding.optimizer_state(self.model, self.optimizer.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir, OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(Path(checkpoint, OPTIMIZER_NAME), map_location="cpu", weights_only=True)
        sharding.load_optimizer_state(self.model, self.optimizer.optimizer, state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            sharding.load_weights(self.model, load_file(Path(resume_from_checkpoint, SAFE_WEIGHTS_NAME)))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_trainer_state(self, output_dir: str) -> None:
        if not self.args.should_save:
            return
        for callback in (*self.callback_handler.callbacks, self.control):
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()
        self.state.save_to_json(str(Path(output_dir, STATE_FILE)))

    def _save_rng_state(self, output_dir: str) -> None:
        """Write the state of each process: random generators, and values for the next log."""
        super()._save_rng_state(output_dir)
        running = {
            "tr_loss": self._tr_loss,
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "sums": self._sums,
            "sums_start": self._sums_start,
            "nan_steps": self.run_control.nan_steps,
        }
        torch.save(running, Path(output_dir, f"running_{self.args.process_index}.pth"))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            self._load_running(checkpoint)

    def _load_running(self, checkpoint: str) -> None:
        """Load the sums of a checkpoint; divide them equally if the number of processes has changed."""
        files = sorted(Path(checkpoint).glob("running_*.pth"))
        share = 1 / self.args.world_size
        if len(files) == self.args.world_size:
            files, share = [Path(checkpoint, f"running_{self.args.process_index}.pth")], 1.0
        device = self.args.device
        states = [torch.load(file, map_location="cpu", weights_only=True) for file in files]
        if states:
            self._tr_loss = (sum(state["tr_loss"] for state in states) / len(states)).to(device)
            self._sums = {
                name: (sum(state["sums"][name] for state in states) * share).to(device) for name in states[0]["sums"]
            }
            self._total_loss_scalar = states[0]["total_loss"]
            self._globalstep_last_logged = states[0]["last_logged"]
            self._sums_start = states[0]["sums_start"]
            self.run_control.nan_steps = states[0]["nan_steps"]

    def _load_best_model(self) -> None:
        problem = decide_in_first_process(lambda: problem_of(self.state.best_model_checkpoint))
        if problem is not None:
            raise OSError(f"The best checkpoint, {self.state.best_model_checkpoint}, is incomplete: {problem}.")
        if self.is_fsdp_enabled:
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()
        config = json.loads(Path(self.state.best_model_checkpoint, CONFIG_NAME).read_text(encoding="utf-8"))
        self._reset_measured_settings(config)

    def _reset_measured_settings(self, saved: Mapping[str, Any]) -> None:
        """Set what evaluations write into the model's config to the values of a saved config, or to the defaults."""
        config = self.accelerator.unwrap_model(self.model).config
        for name, default in getattr(config, "measured_settings", {}).items():
            setattr(config, name, saved.get(name, default))

    def save_config(self) -> None:
        """Write the config of the saved model again, with what the last evaluation found about matching."""
        if self.args.should_save:
            config = self.accelerator.unwrap_model(self.model).config
            write_whole(Path(self.args.output_dir, CONFIG_NAME), [config.to_json_string()])

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        is_staged = folder.parent.name == STAGING
        staged = folder if is_staged else folder / STAGING / "model"
        model = self.accelerator.unwrap_model(self.model)
        if not is_staged and model.config.lora is not None:
            if self.args.should_save:
                source = self.run_record["arguments"].get("model_name_or_path")
                save_adapter(model, staged / ADAPTER_FOLDER, base_model=source)
            merge_lora(model)  # so that the saved weights are evaluated from here on
        with without_bars():
            super()._save(str(staged), state_dict)
        if not self.args.should_save:
            return
        if self.processing_class is None:
            self.processor.save_pretrained(staged)
        write_run_record(staged, self.run_record)
        self._training_clips.write(staged)
        if not is_staged:
            publish(staged, folder)
            clear_staging(folder)
            self.is_saved = folder == Path(self.args.output_dir)

    @functools.cached_property
    def _training_clips(self) -> TrainingClips:
        """Clips that the saved model was trained on; listing them takes seconds for a million rows."""
        source = self.run_record["arguments"].get("model_name_or_path")
        return TrainingClips.read(source).with_rows(self.train_dataset)

    def create_model_card(self, *args, **kwargs) -> None:
        """Write the model card with the metrics of the last evaluation, not the stock card (also before a push)."""
        if self.is_world_process_zero():
            write_card(self)

    def log_metrics(self, split: str, metrics: dict[str, float]) -> None:
        """Print the main metrics of the last training or evaluation; [`save_metrics`] writes all of them."""
        if not self.is_world_process_zero():
            return
        if split == "train":
            step, first = self.state.global_step, self._initial_global_step
            print(training_line(metrics, step, num_now=step - first), flush=True)
        elif self.last_evaluation is not None:
            print(results_table("Test" if split == "test" else "Evaluation", self.last_evaluation), flush=True)

    def log_and_save_metrics(self, split: str, metrics: dict[str, float]) -> dict[str, float]:
        """Call [`log_metrics`] and [`save_metrics`], and return the metrics."""
        self.log_metrics(split, metrics)
        self.save_metrics(split, metrics)
        return metrics

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """Write `{split}_results.json`, `all_results.json` and the files of [`write_results`]."""
        super().save_metrics(split, metrics, combined)
        if self.is_world_process_zero():
            write_results(self, split)

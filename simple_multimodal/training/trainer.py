"""A `Trainer` for several modalities: exact losses over processes, per-sample randomness, evaluation that counts
once.
"""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset
from transformers import EarlyStoppingCallback, PreTrainedModel, ProgressCallback, Trainer
from transformers.trainer_callback import TrainerCallback, TrainerControl
from transformers.trainer_utils import EvalLoopOutput, TrainOutput
from transformers.utils import logging

from simple_multimodal.data.batch_reader import BatchReader, OnBadSamplePolicy, RowKeys, SupervisedReader
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.manifest import MultimodalDataset
from simple_multimodal.data.sampler import EpochSampler
from simple_multimodal.evaluation.model_card import write_model_card
from simple_multimodal.modalities import MODALITIES
from simple_multimodal.models.distributed import sum_over_processes
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.training.answering import evaluate_answers, predict_answers
from simple_multimodal.training.arguments import MultimodalTrainingArguments
from simple_multimodal.training.evaluation import (
    EncodedRow,
    EncodedSet,
    Evaluation,
    PairSet,
    RetrievalEvaluation,
    encode_set,
    evaluate_encoded,
    pair_metrics,
)
from simple_multimodal.training.quarantine import Quarantine
from simple_multimodal.training.run_record import (
    begin_run,
    newest_checkpoint,
    training_clips,
    write_run_record,
    write_training_clips,
)

SETTLE_STEPS = 10
"""Steps after which several processes tell each other what they could not read."""


class LoadingProgressCallback(ProgressCallback):
    """The usual progress bar, with samples per second and the share of time spent waiting for data."""

    def __init__(self, trainer: "MultimodalTrainer"):
        super().__init__()
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if state.is_world_process_zero:
            self.training_bar.set_postfix(self.trainer.speed.rounded(), refresh=False)


class Speed:
    """Samples per second and the share of time spent waiting for batches, since the last [`restart`]."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        self.started = time.perf_counter()
        self.waited = 0.0
        self.samples = 0

    def values(self) -> dict[str, float]:
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        return {"samples_per_second": self.samples / elapsed, "data_wait_share": self.waited / elapsed}

    def rounded(self) -> dict[str, str]:
        values = self.values()
        return {"samples/s": f"{values['samples_per_second']:.1f}", "data wait": f"{values['data_wait_share']:.0%}"}


@torch.no_grad()
def align_parameters(model: torch.nn.Module) -> None:
    """
    Give every parameter and buffer memory of its own, where an allocator would put it.

    `from_pretrained` leaves weights at the addresses that their places in the file give them. CPU kernels round
    differently at an address that is not a multiple of their vector's size, so that a resumed run would differ in the
    last bit from one that began with weights in allocated memory.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


class MultimodalTrainer(Trainer):
    """
    Adds to [`~transformers.Trainer`] only what it lacks:

    - every objective is divided by its own count over all processes and accumulated batches, and logged by name;
    - the training order and every draw about a sample depend on `(seed, epoch, sample)` alone;
    - a sample that cannot be read costs one sample, and is listed in `quarantine.jsonl`;
    - evaluation counts each row once, whatever the batch size and the number of processes;
    - a learning rate per tower; the share of time spent waiting for data.

    Args:
        model ([`TowerModel`]): with `count_items`; a `MultimodalFor…` or `AlproFor…` model.
        args ([`MultimodalTrainingArguments`]): arguments of the run.
        data_collator ([`MultimodalCollator`]): makes training batches.
        eval_collator ([`MultimodalCollator`]): makes evaluation batches.
        train_dataset, eval_dataset ([`MultimodalDataset`], *optional*): rows.
        processing_class ([`MultimodalProcessor`]): saved beside the model.
        run_record (`dict`, *optional*): content of `run.json`, saved into every checkpoint.
        callbacks (`list[TrainerCallback]`, *optional*): further callbacks.
    """

    control: TrainerControl
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel,
        args: MultimodalTrainingArguments,
        *,
        data_collator: MultimodalCollator,
        eval_collator: MultimodalCollator,
        train_dataset: MultimodalDataset | None = None,
        eval_dataset: MultimodalDataset | dict[str, MultimodalDataset] | None = None,
        processing_class: MultimodalProcessor | None = None,
        run_record: dict | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        self.run_record = run_record
        self.speed = Speed()
        self.eval_collator = eval_collator
        self.last_evaluation: Evaluation | None = None
        self._sums: dict[str, torch.Tensor] = {}
        self.has_trained = False
        self._sums_start = 0  # the step before the first one that the sums are over
        self.processor = processing_class
        self.args = args
        self._quarantine = self._make_quarantine(starts_over=False)
        align_parameters(model)
        # `Trainer` asks every processor for special tokens, also one without a tokenizer.
        has_tokenizer = processing_class is not None and processing_class.tokenizer is not None
        super().__init__(
            model,
            args,
            data_collator=self._reader(train_dataset, data_collator, args.on_bad_sample) if train_dataset else None,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class if has_tokenizer else None,
            callbacks=callbacks,
        )
        if args.disable_tqdm:
            logging.disable_progress_bar()  # of writing a checkpoint
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(LoadingProgressCallback(self))
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    # ---- Data ----
    def _reader(
        self,
        dataset: MultimodalDataset,
        collator: MultimodalCollator,
        on_bad_sample: OnBadSamplePolicy,
        *,
        with_captions: bool = False,
    ) -> SupervisedReader:
        """Makes batches out of keys of rows."""
        return SupervisedReader(
            BatchReader(dataset, collator, on_bad_sample=on_bad_sample, with_captions=with_captions),
            timeout_seconds=self.args.sample_timeout_seconds,
            memory_gigabytes=self.args.loader_memory_gigabytes,
        )

    def _make_quarantine(self, *, starts_over: bool) -> Quarantine:
        return Quarantine(
            self.args.output_dir,
            starts_over=starts_over,
            writes=self.args.process_index == 0,
            max_bad_fraction=self.args.max_bad_fraction,
        )

    def _get_dataloader(self, dataset: MultimodalDataset, *args, **kwargs) -> DataLoader:
        return super()._get_dataloader(RowKeys(dataset), *args, **kwargs)

    def _get_train_sampler(self, train_dataset: RowKeys | None = None) -> EpochSampler:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        shuffle = self.args.train_sampling_strategy != "sequential"
        return EpochSampler(train_dataset or RowKeys(self.train_dataset), seed=seed, shuffle=shuffle)

    def get_eval_dataloader(self, eval_dataset: str | MultimodalDataset | None = None) -> DataLoader:
        """Batches of this process's share of the rows; no row stands in two shares, none is repeated to fill a
        batch.
        """
        if eval_dataset is None or isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset] if isinstance(eval_dataset, str) else self.eval_dataset
        if not isinstance(eval_dataset, MultimodalDataset):
            raise ValueError("Evaluation needs an eval_dataset.")
        # Never another row in the place of a bad one: that one is to count.
        policy: OnBadSamplePolicy = "fail" if self.args.on_bad_sample == "fail" else "skip"
        workers = self.args.dataloader_num_workers
        share = range(self.args.process_index, len(eval_dataset), self.args.world_size)
        return DataLoader(
            Subset(RowKeys(eval_dataset), share),
            batch_size=self.args.eval_batch_size,
            collate_fn=self._reader(
                eval_dataset, self.eval_collator, policy, with_captions=not self._answers_questions
            ),
            num_workers=workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            multiprocessing_context=self.args.dataloader_multiprocessing_context if workers else None,
        )

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        # A run that resumes at its last step, within an epoch, would get one more.
        if self.state.global_step >= self.state.max_steps:
            return [], None
        started = time.perf_counter()
        batches, counts = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.speed.waited += time.perf_counter() - started
        self.has_trained = True
        self.speed.samples += sum(len(batch["row_ids"]) for batch in batches) * self.args.world_size
        return batches, counts

    # ---- Losses ----
    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> dict[str, torch.Tensor] | None:
        if not batch_samples:
            return None
        for batch in batch_samples:
            bad_samples = batch.pop("bad_samples", ())
            num_read = len(batch["row_ids"])
            if self.args.on_bad_sample == "replace":
                num_read += len(bad_samples)  # after each another one was read
            self._quarantine.add(bad_samples, num_read, self.state.global_step + 1)
        model = self.accelerator.unwrap_model(self.model)
        counts = [model.count_items(batch) for batch in batch_samples]
        names = list(counts[0])
        totals = torch.stack([torch.stack([count[name] for name in names]).to(device) for count in counts]).sum(dim=0)
        return dict(zip(names, sum_over_processes(totals), strict=True))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs, num_items=num_items_in_batch)
        self._collect(outputs)
        # Gradients are averaged over processes, but this loss is a share of a sum.
        loss = outputs.loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _collect(self, outputs) -> None:
        """Add up what the next log shows, on the device: reading it every step would wait for the device every
        step.
        """
        if not self._sums:
            self._sums_start = self.state.global_step
        for name, value in outputs.losses.items():
            self._sums[f"{name}_loss"] = self._sums.get(f"{name}_loss", torch.zeros_like(value)) + value
        for name, value in outputs.metrics.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
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
        # After every step; several processes meet less often, which on a device would wait for it.
        control, step = self.control, self.state.global_step
        if (
            self.args.world_size == 1
            or step % SETTLE_STEPS == 0
            or (control.should_save or control.should_evaluate or control.should_training_stop)
        ):
            self._quarantine.settle()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        """[`Trainer.train`]; `resume_from_checkpoint=True` takes the newest checkpoint that was written to its end.

        Returns:
            [`~transformers.trainer_utils.TrainOutput`]: without metrics if the checkpoint had no step left to train.
        """
        if resume_from_checkpoint is True:
            newest = newest_checkpoint(self.args.output_dir)
            if newest is None:
                raise ValueError(f"{self.args.output_dir!r} holds no complete checkpoint to resume from.")
            resume_from_checkpoint = str(newest)
        if self.run_record is not None:
            self.accelerator.wait_for_everyone()  # until all have looked into the folder
            if self.is_world_process_zero():
                begin_run(self.args.output_dir, self.run_record, starts_over=resume_from_checkpoint is None)
        self._quarantine = self._make_quarantine(starts_over=resume_from_checkpoint is None)
        self._sums = {}
        self.speed.restart()
        self.has_trained = False
        result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        return result if self.has_trained else result._replace(metrics={})

    # ---- Optimizer ----
    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        rates = self.args.tower_learning_rates
        if not rates:
            return optimizer
        towers = self.accelerator.unwrap_model(model or self.model).towers
        if lacking := [f"--{name}_learning_rate" for name in rates if name not in towers]:
            raise ValueError(
                f"{', '.join(lacking)} can have no effect: this model has {', '.join(towers)}. Leave that out."
            )
        own_rates = {id(parameter): rates[name] for name in rates for parameter in towers[name].parameters()}
        groups = []
        for group in optimizer.param_groups:
            by_rate: dict[float, list[torch.nn.Parameter]] = {}
            for parameter in group["params"]:
                rate = own_rates.get(id(parameter), group["lr"])
                by_rate.setdefault(rate, []).append(parameter)
            groups += [{**group, "params": parameters, "lr": rate} for rate, parameters in by_rate.items()]
        optimizer.param_groups.clear()
        for group in groups:
            optimizer.add_param_group(group)
        return optimizer

    # ---- Evaluation ----
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Run over this process's rows, share what comes out, and measure; [`Trainer.evaluate`] does the rest."""
        if self._answers_questions:
            evaluation: Evaluation = self._evaluate_answers(dataloader)
        else:
            evaluation = self._evaluate_retrieval(dataloader)
        evaluation.bad_samples = self._quarantine.settle("evaluation")
        self.last_evaluation = evaluation
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in evaluation.metrics.items()}
        num_rows = evaluation.counts["questions" if self._answers_questions else "rows"]
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=num_rows)

    @property
    def _answers_questions(self) -> bool:
        return hasattr(self.accelerator.unwrap_model(self.model), "answer_logits")

    def _evaluate_answers(self, dataloader: DataLoader) -> Evaluation:
        self.callback_handler.eval_dataloader = dataloader
        with self._evaluating() as model:
            predictions = predict_answers(
                model,
                self._noting_bad_samples(dataloader),
                to_device=self._prepare_inputs,
                autocast=self.accelerator.autocast,
                on_step=self._on_prediction_step,
            )
        questions = dataloader.dataset.dataset.dataset  # type: ignore[attr-defined]  # of a Subset of keys
        return evaluate_answers(predictions, questions, model.config.id2label, self.train_dataset)

    def _evaluate_retrieval(self, dataloader: DataLoader) -> RetrievalEvaluation:
        with self._evaluating() as model:
            encoded = self._encode(model, dataloader)
            return evaluate_encoded(
                model,
                encoded,
                matching_top_k=self.args.matching_top_k,
                process_index=self.args.process_index,
                num_processes=self.args.world_size,
                autocast=self.accelerator.autocast,
            )

    def evaluate_pairs(self, pair_sets: list[PairSet]) -> dict[str, float]:
        """Measure pairs of rows of the evaluation set that was evaluated last; the metrics join those of that
        evaluation.

        Returns:
            `dict[str, float]`: metrics of [`pair_metrics`], with the prefix `eval_`.
        """
        if not pair_sets:
            return {}
        evaluation = self.last_evaluation
        if not isinstance(evaluation, RetrievalEvaluation):
            raise ValueError("Pairs are measured among the rows of a retrieval evaluation: call `evaluate` before.")
        ids = self.eval_dataset

        def clip_embeds(dataset: MultimodalDataset, rows: list[EncodedRow]) -> dict[str, torch.Tensor]:
            return {
                dataset.bare_row((0, row.row_id))["id"]: row.embeds["clip"] * (math.nan if row.is_bad else 1.0)
                for row in rows
                if row.presence["clip"] or row.is_bad
            }

        clips = clip_embeds(ids, evaluation.rows)
        captions: dict[str, torch.Tensor] = {}
        for caption in evaluation.captions:
            captions.setdefault(ids.bare_row((0, caption.row_id))["id"], caption.embed)
        metrics: dict[str, float] = {}
        for pair_set in pair_sets:
            swapped: dict[str, torch.Tensor] = {}
            if pair_set.swapped is not None:
                with self._evaluating() as model:
                    encoded = self._encode(model, self.get_eval_dataloader(pair_set.swapped))
                # Nothing else ends the progress bar of this pass.
                self.control = self.callback_handler.on_predict(self.args, self.state, self.control, {})
                swapped = clip_embeds(pair_set.swapped, encoded.rows)
                evaluation.bad_samples += self._quarantine.settle("evaluation")
            measured, intervals = pair_metrics(pair_set, captions, clips, swapped)
            metrics |= measured
            evaluation.intervals |= intervals
        evaluation.metrics |= metrics
        return {f"eval_{name}": value for name, value in metrics.items()}

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[PreTrainedModel]:
        """The model without its wrappers, in evaluation mode for as long as the context lasts."""
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        yield model
        model.train(was_training)

    def _encode(self, model: PreTrainedModel, dataloader: DataLoader) -> EncodedSet:
        self.callback_handler.eval_dataloader = dataloader
        return encode_set(
            model,
            self._noting_bad_samples(dataloader),
            to_device=self._prepare_inputs,
            autocast=self.accelerator.autocast,
            on_step=self._on_prediction_step,
        )

    def _noting_bad_samples(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for batch in batches:
            self._quarantine.add(batch.get("bad_samples", ()), len(batch["row_ids"]), self.state.global_step)
            yield batch

    def _on_prediction_step(self) -> None:
        self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

    # ---- Saving ----
    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.processor is not None and self.processing_class is None and self.args.should_save:
            self.processor.save_pretrained(output_dir or self.args.output_dir)
        if self.run_record is not None and self.args.should_save:
            folder = output_dir or self.args.output_dir
            write_run_record(folder, self.run_record)
            source = self.run_record["arguments"].get("model_name_or_path")
            write_training_clips(folder, training_clips(self.train_dataset, source))

    def create_model_card(self, *args, **kwargs) -> None:
        """Write the model card with the numbers of the last evaluation, in place of the stock one (also before a
        push).
        """
        if not self.is_world_process_zero() or self.run_record is None:
            return
        evaluation, arguments = self.last_evaluation, self.run_record["arguments"]
        write_model_card(
            self.args.output_dir,
            metrics=evaluation.metrics if evaluation else {},
            intervals=evaluation.intervals if evaluation else {},
            protocol=evaluation.protocol if evaluation else "not evaluated",
            counts=evaluation.counts if evaluation else {},
            training_counts={"rows": len(self.train_dataset), "steps": self.state.global_step},
            run=self.run_record,
            dataset_name=Path(arguments["validation_file"]).parent.name or Path(arguments["validation_file"]).stem,
            base_models=[
                arguments[f"{tower}_model_name_or_path"]
                for tower in (*MODALITIES, "fusion")
                if arguments[f"{tower}_model_name_or_path"]
            ],
        )

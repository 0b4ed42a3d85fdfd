"""A task outside the package: estimate a number per clip."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from simple_multimodal.data.rows import Row, RowDataset
from simple_multimodal.evaluation.bootstrap import bootstrap_interval, resampled_mean
from simple_multimodal.flags import DATA, flag
from simple_multimodal.inference.encoded import EncodedBatch, EncodedRows
from simple_multimodal.inference.pipeline import Pipeline
from simple_multimodal.inference.requests import as_requests, rows_of_clips
from simple_multimodal.models.losses import masked_mean
from simple_multimodal.models.modeling import MultimodalModel, MultimodalPreTrainedModel
from simple_multimodal.models.outputs import MultimodalOutput
from simple_multimodal.models.pairs import Encoded
from simple_multimodal.tasks.registry import Evaluation, Measuring, Task, TaskOptions, register_task


class MultimodalForRegression(MultimodalPreTrainedModel):
    """Predicts a number from the mean of a clip's tokens."""

    loss_weights = {"error": 1.0}

    def __init__(self, config):
        super().__init__(config)
        self.multimodal = MultimodalModel(config)
        self.head = nn.Linear(self.multimodal.fusion.hidden_size, 1)
        self.post_init()

    def count_items(self, batch):
        return {"error": (~batch["numbers"].isnan()).sum().float()}

    def estimate(self, batch) -> torch.Tensor:
        """Return the estimates `(batch_size,)`."""
        _, clip = self.multimodal.encode_clip(batch, with_embeds=False)
        means = torch.stack([masked_mean(stream.states, stream.mask) for stream in clip.values()])
        return self.head(means.mean(dim=0))[:, 0].float()

    def forward(self, numbers=None, num_items=None, **batch):
        estimates = self.estimate(batch)
        if numbers is None:
            return MultimodalOutput(logits=estimates)
        count = (num_items or self.count_items({"numbers": numbers}))["error"]
        loss = (estimates - numbers).nan_to_num().square().sum() / count.clamp(min=1)
        return MultimodalOutput(loss=loss, logits=estimates, losses={"error": loss.detach()}, metrics={})


@dataclass(frozen=True)
class RegressionOptions(TaskOptions):
    """
    Args:
        number_column (`str`, *optional*, defaults to `"loudness"`): Column with the number of each clip.
    """

    number_column: str = flag("loudness", DATA, "Column with the number of each clip.")


class NumberColumn:
    """Adds `numbers` to a batch; NaN for a row without a number."""

    def __init__(self, column: str):
        self.column = column

    def __call__(self, rows: Sequence[Row], batch: Mapping[str, Any], generator_of) -> dict[str, torch.Tensor]:
        given = [row.get(self.column) for row in rows]
        return {"numbers": torch.tensor([float("nan") if number is None else float(number) for number in given])}


class Estimator(Pipeline):
    """Estimates the number of each clip."""

    model_classes = {"MultimodalForRegression": MultimodalForRegression}

    def __call__(self, inputs, **settings) -> list[list[dict]]:
        requests = as_requests(inputs, clips="clip")
        if not requests:
            return []
        rows, row_of = rows_of_clips([request["clip"] for request in requests])
        estimates = self.encode_rows(rows, encode=estimate_batch, on_bad_sample="fail").values["estimates"].tolist()
        return [[{"score": estimates[number]}] for number in row_of]

    def estimate_rows(self, rows: Sequence[Row]) -> EncodedRows:
        """Encode rows; `values["estimates"]` has the number of each of the `rows` that could be read."""
        return self.encode_rows(rows, encode=estimate_batch)


def estimate_batch(model, batch) -> EncodedBatch:
    nothing = [Encoded(None, {}) for _ in batch["row_ids"]]
    return EncodedBatch(nothing, {"estimates": model.estimate(batch).cpu()})


@register_task
class Regression(Task):
    """Regression with a squared error."""

    name = "regression"
    summary = "a number per clip"
    model_classes = {"simple_multimodal": MultimodalForRegression}
    options_class = RegressionOptions
    pipeline_class = Estimator

    def build_targets(self, model, processor):
        return NumberColumn(self.options.number_column)

    def evaluate(self, pipeline: Estimator, dataset: RowDataset, measuring: Measuring) -> Evaluation:
        rows = list(dataset.rows(files="named"))
        encoded = pipeline.estimate_rows(rows)
        found = {row["id"]: value.item() for row, value in zip(encoded.rows, encoded.values["estimates"], strict=True)}
        # Every row counts: a clip that cannot be read has the estimate 0.
        column = self.options.number_column
        errors = torch.tensor([abs(found.get(row["id"], 0.0) - float(row[column])) for row in rows])
        error = float(errors.double().mean())
        return Evaluation(
            metrics={"loss": float(errors.double().square().mean()), "mean_absolute_error": error},
            intervals={"mean_absolute_error": bootstrap_interval(errors.numpy(), resampled_mean)},
            counts={"rows": len(rows), "clips": len(found)},
            protocol=measuring.protocol or "absolute error, every row once",
            primary_metric="mean_absolute_error",
            num_rows=len(rows),
            bad_samples=encoded.bad_samples,
        )

"""The options of video classification."""

from dataclasses import dataclass
from typing import Literal

from simple_multimodal.flags import MODEL, OBJECTIVES, flag
from simple_multimodal.missing import Named
from simple_multimodal.tasks.options import TaskOptions

LOSSES = {"bce": (0.0, 0.0, 0.0), "focal": (2.0, 2.0, 0.0), "asymmetric": (0.0, 4.0, 0.05)}
"""`positive_focus`, `negative_focus` and `negative_margin` of each loss, as their authors recommend."""


@dataclass(frozen=True)
class VideoClassificationOptions(TaskOptions):
    """
    Args:
        labels_file (`str`, *optional*): File with the labels in their order: one per line, or as JSON; by default the
            labels of the training rows, in alphabetical order.
        multi_label_loss (`str`, *optional*, defaults to `"bce"`): Loss of rows with any number of labels: `"bce"`
            (binary cross-entropy), `"focal"` or `"asymmetric"`, see [`asymmetric_loss`].
    """

    labels_file: str | None = flag(
        None,
        MODEL,
        "Labels for video_classification: one per line, or JSON. Default: those of the training rows.",
        names=Named.PATH,
    )
    multi_label_loss: Literal["bce", "focal", "asymmetric"] = flag(
        "bce", OBJECTIVES, "Loss of rows with any number of labels."
    )

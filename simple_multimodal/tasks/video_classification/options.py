"""The options of video classification."""

from dataclasses import dataclass
from typing import Literal

from simple_multimodal.flags import EVALUATION, MODEL, OBJECTIVES, Command, flag
from simple_multimodal.missing import Named
from simple_multimodal.tasks.options import TaskOptions

INFER: tuple[Command, ...] = ("infer",)

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
        eval_views, eval_crops (`int`, *optional*, default to 1), view_pooling (`str`, *optional*, defaults to
            `"mean"`): Views that `infer` predicts from, see [`Views`].
        localization_window (`float`, *optional*): Length of the windows, in seconds, in which `infer` localizes
            actions; by default it does not.
    """

    labels_file: str | None = flag(
        None,
        MODEL,
        "Labels for video_classification: one per line, or JSON. Default: those of the training rows.",
        names=Named.FILE,
    )
    eval_views: int = flag(
        1, EVALUATION, "Sets of interleaved frames that each clip is classified from.", at_least=1, commands=INFER
    )
    eval_crops: int = flag(
        1, EVALUATION, "Crops along the longer side of the frame, for each of the views.", at_least=1, commands=INFER
    )
    view_pooling: Literal["mean", "max"] = flag(
        "mean", EVALUATION, "How the probabilities of views and crops are combined.", commands=INFER
    )
    localization_window: float | None = flag(
        None,
        EVALUATION,
        "Seconds around each of 25 points of a clip, to localize the actions of Charades. Default: not measured.",
        above=0,
        remedy="give a number of seconds above 0",
        commands=INFER,
    )
    multi_label_loss: Literal["bce", "focal", "asymmetric"] = flag(
        "bce", OBJECTIVES, "Loss of rows with any number of labels."
    )

"""The options of question answering."""

from dataclasses import dataclass

from simple_multimodal.flags import MODEL, flag
from simple_multimodal.missing import Named
from simple_multimodal.tasks.options import TaskOptions


@dataclass(frozen=True)
class QuestionAnsweringOptions(TaskOptions):
    """
    Args:
        answers_file (`str`, *optional*): JSON object that maps answers to numbers, such as ALPRO's
            `train_ans2label.json`; by default the answers come from the training questions.
    """

    answers_file: str | None = flag(
        None,
        MODEL,
        "JSON object {answer: number} for question_answering. Default: the training answers.",
        names=Named.FILE,
    )

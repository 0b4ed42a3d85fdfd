"""Choose an answer from a fixed list to a question about a clip."""

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from simple_multimodal.alpro import AlproForQuestionAnswering
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.targets import Targets
from simple_multimodal.errors import InputError
from simple_multimodal.inference.pipeline import Pipeline
from simple_multimodal.modalities import Modality
from simple_multimodal.models.base import TowerModel
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.tasks.base import Evaluation, Measuring, Task
from simple_multimodal.tasks.labels import label_settings, read_labels
from simple_multimodal.tasks.question_answering.answerer import QuestionAnswerer
from simple_multimodal.tasks.question_answering.evaluate import evaluate_answers
from simple_multimodal.tasks.question_answering.modeling import MultimodalForQuestionAnswering
from simple_multimodal.tasks.question_answering.options import QuestionAnsweringOptions
from simple_multimodal.tasks.question_answering.targets import QUESTION_COLUMNS, AnswerLabels, question_pairs

PROTOCOL = "the highest scoring answer of the model's list; correct if it equals the annotated one exactly"

ANSWER = """\
from simple_multimodal import QuestionAnswerer

answerer = QuestionAnswerer.from_pretrained({model})
for answer in answerer.answer("what is the dog doing?", "my_clips/0001.mp4", top_k=3):
    print(answer.text, answer.probability)"""


class QuestionAnswering(Task):
    """Classify the fused states of question and clip among the answers of the configuration's `id2label`."""

    name = "question_answering"
    summary = "choose an answer (columns question and answer)"
    model_classes = {"simple_multimodal": MultimodalForQuestionAnswering, "alpro": AlproForQuestionAnswering}
    options_class = QuestionAnsweringOptions
    row_settings = QUESTION_COLUMNS
    pipeline_class = QuestionAnswerer
    reads_embeddings = False
    compares_with_training = True

    def config_settings(self, source: str | os.PathLike[str] | None, train_set: RowDataset | None) -> dict[str, Any]:
        """
        Return the answers that the model should know. A saved question answering model keeps its own.

        Raises:
            ValueError: If there is no source of answers, **or** `answers_file` is invalid.
        """
        file = self.options.answers_file
        answers = None if file is None else read_labels(file, "answers_file")

        def from_rows() -> list[str]:
            if train_set is None:
                raise InputError(
                    "A question answering model takes its answers from the training questions: train it "
                    "(--do_train), or load a trained one (--model_name_or_path)."
                )
            return answer_vocabulary(answer for _, answer in question_pairs(train_set))

        return label_settings(self.model_classes, source, answers, f"answers_file={file!r}", from_rows)

    def build_targets(self, model: TowerModel, processor: MultimodalProcessor) -> Targets:
        """Return the labels of each row's answer."""
        return AnswerLabels(model.config.label2id)

    def warning_about(self, model: TowerModel, dataset: RowDataset) -> str | None:
        """Return a warning if the model does not know the answers to more than half of the questions."""
        answers = model.config.label2id
        unknown = sum(answer not in answers for answer in dataset.column("answer"))
        if unknown <= len(dataset) / 2:
            return None
        return (
            f"{unknown:,} of {len(dataset):,} questions have no known answer: the model chooses among the "
            f"{len(answers):,} answers of the training questions (or of answers_file). These questions count as "
            "wrong, and add nothing to the loss. Check the column `answer`."
        )

    def evaluate(self, pipeline: Pipeline, dataset: RowDataset, measuring: Measuring) -> Evaluation:
        """Measure a model with [`evaluate_answers`]."""
        return evaluate_answers(
            pipeline,  # type: ignore[arg-type]
            dataset,
            protocol=self.protocol(PROTOCOL, pipeline, measuring),
            train_set=measuring.train_set,
            with_losses=measuring.with_losses,
            alpro=measuring.alpro,
            partial=measuring.partial,
        )

    def usage(self, modalities: Sequence[Modality]) -> str:
        """Return code that asks a question about a clip."""
        return ANSWER

    def next_command(self, modalities: Sequence[Modality], text: str | None, file: str | None) -> str:
        """Return a command that asks the question about the clip."""
        question, clip = text or "what is the dog doing?", file or "my_clips/0001.mp4"
        return f"simple-multimodal answer {{model}} {shlex.quote(question)} {shlex.quote(clip)}"


def answer_vocabulary(answers: Iterable[str]) -> list[str]:
    """
    Return the answers that a model should know, the most frequent first, ties in alphabetical order.

    Args:
        answers (`Iterable[str]`): Answers to the training questions.

    Raises:
        ValueError: If there are fewer than two different answers.
    """
    counts = Counter(answers)
    if len(counts) < 2:
        raise InputError(
            f"The training questions have {len(counts)} different answers; at least two are needed. Check the column "
            "`answer`."
        )
    return sorted(counts, key=lambda answer: (-counts[answer], answer))

"""Choose an answer from a fixed list to a question about a clip."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from simple_multimodal.alpro import AlproForQuestionAnswering
from simple_multimodal.assembly import saved_config
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.targets import Targets
from simple_multimodal.errors import InputError
from simple_multimodal.inference.pipeline import Pipeline
from simple_multimodal.modalities import Modality
from simple_multimodal.models.base import TowerModel
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.tasks.base import Evaluation, Measuring, Task
from simple_multimodal.tasks.question_answering.answerer import QuestionAnswerer
from simple_multimodal.tasks.question_answering.evaluate import evaluate_answers
from simple_multimodal.tasks.question_answering.modeling import MultimodalForQuestionAnswering
from simple_multimodal.tasks.question_answering.options import QuestionAnsweringOptions
from simple_multimodal.tasks.question_answering.targets import QUESTION_COLUMNS, AnswerLabels, question_pairs

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
        The answers that the model is to know. A saved one that answers questions already keeps its own.

        Raises:
            ValueError: If there is nothing to take answers from, or `answers_file` is something else.
        """
        file = self.options.answers_file
        label2id = None if file is None else _read_answers(file)
        if source is not None:
            config = saved_config(source)
            if config.get("architectures") in [[model.__name__] for model in self.model_classes.values()]:
                if file is not None and label2id != config.get("label2id"):
                    raise InputError(
                        f"{source} answers questions already, with other answers than those of --answers_file {file}. "
                        "It keeps its own: leave the flag out."
                    )
                return {}
        if label2id is not None:
            is_numbered = isinstance(label2id, dict) and sorted(label2id.values()) == list(range(len(label2id)))
            if not is_numbered or len(label2id) < 2:
                raise InputError(f"--answers_file {file} must hold an object of answers numbered from 0.")
        elif train_set is not None:
            answers = answer_vocabulary(answer for _, answer in question_pairs(train_set))
            label2id = {answer: number for number, answer in enumerate(answers)}
        else:
            raise InputError(
                "A model that answers questions takes its answers from the training questions: train it "
                "(--do_train), or name one that was trained (--model_name_or_path)."
            )
        return {"label2id": label2id, "id2label": {number: answer for answer, number in label2id.items()}}

    def build_targets(self, model: TowerModel, processor: MultimodalProcessor) -> Targets:
        """The number of each row's answer."""
        return AnswerLabels(model.config.label2id)

    def evaluate(self, pipeline: Pipeline, dataset: RowDataset, measuring: Measuring) -> Evaluation:
        """See [`evaluate_answers`]."""
        return evaluate_answers(
            pipeline,  # type: ignore[arg-type]
            dataset,
            protocol=measuring.protocol
            or "the highest scoring answer of the model's list; right if it is the annotated one, letter by letter",
            train_set=measuring.train_set,
            with_losses=measuring.with_losses,
            alpro=measuring.alpro,
            partial=measuring.partial,
        )

    def usage(self, modalities: Sequence[Modality]) -> str:
        """A question about a clip."""
        return ANSWER

    def next_command(self, modalities: Sequence[Modality]) -> str:
        """The same as a command."""
        return "simple-multimodal answer {model} 'what is the dog doing?' my_clips/0001.mp4"


def answer_vocabulary(answers: Iterable[str]) -> list[str]:
    """
    The answers that a model is to know, the most frequent first, equally frequent ones in alphabetical order.

    Args:
        answers (`Iterable[str]`): of the training questions.

    Raises:
        ValueError: If there are fewer than two different answers.
    """
    counts = Counter(answers)
    if len(counts) < 2:
        raise InputError(
            f"The training questions have {len(counts)} different answers; a choice needs two. Is the column `answer` "
            "there?"
        )
    return sorted(counts, key=lambda answer: (-counts[answer], answer))


def _read_answers(file: str) -> Any:
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--answers_file {file} cannot be read as JSON: {error}") from error

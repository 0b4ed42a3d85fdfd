"""Answer questions about clips."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from simple_multimodal.data.files import media_rows
from simple_multimodal.data.manifest import QuestionDataset
from simple_multimodal.inference.loading import ClipKey, Pipeline
from simple_multimodal.models import AlproForQuestionAnswering, MultimodalForQuestionAnswering
from simple_multimodal.models.pairs import score_pairs


class Answer(NamedTuple):
    """An answer and how probable the model finds it among those that it knows."""

    text: str
    probability: float


class QuestionAnswerer(Pipeline):
    """
    Answers questions about clips, choosing among the answers that the model knows. Arguments are those of
    [`Pipeline`].

    Example:

    ```python
    >>> answerer = QuestionAnswerer.from_pretrained("outputs/toy_questions")
    >>> answerer.answer("which shape is to be seen?", "clip.mp4", top_k=2)
    [Answer(text='circle', probability=0.98), Answer(text='square', probability=0.01)]
    ```
    """

    model_classes = {
        "MultimodalForQuestionAnswering": MultimodalForQuestionAnswering,
        "AlproForQuestionAnswering": AlproForQuestionAnswering,
    }

    def answer(
        self, questions: str | Sequence[str], clip: str | os.PathLike[str], *, top_k: int = 1
    ) -> list[Answer] | list[list[Answer]]:
        """
        Answer questions about one clip.

        Args:
            questions (`str` or `Sequence[str]`): a question, or several.
            clip (`str`): media file.
            top_k (`int`, *optional*, defaults to 1): how many answers to return.

        Returns:
            `list[Answer]`: the most probable first; for several questions a list of such lists.

        Raises:
            MediaError: The file cannot be read.
            ValueError: A question is blank.
        """
        asked = [questions] if isinstance(questions, str) else list(questions)
        if any(not question.strip() for question in asked):
            raise ValueError("A question is blank.")
        logits = self._logits(asked, media_rows([clip]), [0] * len(asked))
        probabilities, chosen = logits.softmax(dim=1).topk(min(top_k, logits.shape[1]))
        id2label = self.model.config.id2label
        results = [
            [Answer(id2label[label], value) for label, value in zip(labels, values, strict=True)]
            for labels, values in zip(chosen.tolist(), probabilities.tolist(), strict=True)
        ]
        return results[0] if isinstance(questions, str) else results

    def answer_rows(self, dataset: QuestionDataset) -> torch.Tensor:
        """
        Score all answers to every question of a data set; each clip runs through the towers once.

        Args:
            dataset ([`QuestionDataset`]): the questions.

        Returns:
            `torch.FloatTensor` of shape `(num_questions, num_labels)`: logits, the same on all processes.
        """
        rows = list(dataset)
        clips = self.rows(dataset)
        place = {ClipKey.of(row): number for number, row in enumerate(clips)}
        return self._logits([row["captions"][0] for row in rows], clips, [place[ClipKey.of(row)] for row in rows])

    def _logits(self, questions: Sequence[str], clips: Sequence, clip_of: Sequence[int]) -> torch.Tensor:
        texts = list(dict.fromkeys(questions))
        text_of = {text: number for number, text in enumerate(texts)}
        pairs = [(text_of[question], clip) for question, clip in zip(questions, clip_of, strict=True)]
        unique = list(dict.fromkeys(pairs))  # a question may be asked twice of one clip
        scores = score_pairs(
            self.model,
            self.model.answer_logits,
            self.encode_texts(texts),
            self.encode_rows(clips),
            np.array(unique),
            process_index=self.state.process_index,
            num_processes=self.state.num_processes,
        )
        number = {pair: place for place, pair in enumerate(unique)}
        return scores[[number[pair] for pair in pairs]]

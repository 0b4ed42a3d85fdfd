"""Answer questions about clips."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from simple_multimodal.data.files import media_rows
from simple_multimodal.data.manifest import QuestionDataset, Row
from simple_multimodal.inference.loading import ClipKey, Pipeline
from simple_multimodal.models import AlproForQuestionAnswering, MultimodalForQuestionAnswering


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
            ValueError: A question is blank, or the file has nothing that the model takes.
        """
        asked = [questions] if isinstance(questions, str) else list(questions)
        if any(not question.strip() for question in asked):
            raise ValueError("A question is blank.")
        rows = media_rows([clip])
        if not self.has_clip(rows[0]):
            raise ValueError(
                f"{os.fspath(clip)}: has no pictures, and this model listens to no sound; pass a video file."
            )
        logits = self._logits(asked, rows, [0] * len(asked))
        probabilities, chosen = logits.softmax(dim=1).topk(min(top_k, logits.shape[1]))
        id2label = self.model.config.id2label
        results = [
            [Answer(id2label[label], value) for label, value in zip(labels, values, strict=True)]
            for labels, values in zip(chosen.tolist(), probabilities.tolist(), strict=True)
        ]
        return results[0] if isinstance(questions, str) else results

    def answer_rows(self, dataset: QuestionDataset, *, partial: str | os.PathLike[str] | None = None) -> torch.Tensor:
        """
        Score all answers to every question of a data set; each clip runs through the towers once.

        Args:
            dataset ([`QuestionDataset`]): the questions. One whose row has no clip is answered from its text alone.
            partial (`str`, *optional*): folder for what is finished; if the call is interrupted, the same call goes on
                from there. It stays until it is removed.

        Returns:
            `torch.FloatTensor` of shape `(num_questions, num_labels)`: logits, the same on all processes.
        """
        rows = list(dataset)
        clips = list({ClipKey.of(row): row for row in reversed(rows)}.values())[::-1]  # each where it is first
        place = {ClipKey.of(row): number for number, row in enumerate(clips)}
        clip_of = [place[ClipKey.of(row)] for row in rows]
        return self._logits([row["captions"][0] for row in rows], clips, clip_of, partial)

    def _logits(
        self,
        questions: Sequence[str],
        clips: Sequence[Row],
        clip_of: Sequence[int],
        partial: str | os.PathLike[str] | None = None,
    ) -> torch.Tensor:
        folder = None if partial is None else Path(partial)
        key = "" if folder is None else self.key(clips)
        texts = list(dict.fromkeys(questions))
        text_of = {text: number for number, text in enumerate(texts)}
        pairs = [(text_of[question], clip) for question, clip in zip(questions, clip_of, strict=True)]
        unique = list(dict.fromkeys(pairs))  # a question may be asked twice of one clip
        encoded = self.encode_rows(clips, partial=folder, key=key)
        scores = self.score(
            self.model.answer_logits,
            texts,
            self.encode_texts(texts),
            encoded,
            np.array(unique),
            partial=folder,
            key=key,
        )
        number = {pair: place for place, pair in enumerate(unique)}
        return scores[[number[pair] for pair in pairs]]

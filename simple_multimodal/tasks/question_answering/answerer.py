"""Answer questions about clips."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from simple_multimodal.alpro import AlproForQuestionAnswering
from simple_multimodal.data.bad_samples import BadSample
from simple_multimodal.data.files import is_media_folder
from simple_multimodal.data.rows import Row, RowDataset
from simple_multimodal.defaults import TOP_K_ANSWERS
from simple_multimodal.errors import InputError
from simple_multimodal.inference.pipeline import Pipeline
from simple_multimodal.inference.requests import Clip, ClipKey, Clips, Request, as_requests, open_clips, rows_of_clips
from simple_multimodal.tasks.question_answering.modeling import MultimodalForQuestionAnswering


class Answer(NamedTuple):
    """An answer, and its probability among the answers that the model knows."""

    text: str
    probability: float

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as a result of a request, see [`QuestionAnswerer.__call__`]."""
        return {"answer": self.text, "score": self.probability}


class QuestionScores(NamedTuple):
    """Scores of all answers to questions.

    Args:
        logits (`torch.FloatTensor` of shape `(num_questions, num_labels)`): NaN where the clip could not be read.
        is_read (`torch.BoolTensor` of shape `(num_questions,)`): Whether the clip could be read.
        bad_samples (`list[BadSample]`): Clips that could not be read, each once, with the first row that shows it.
    """

    logits: torch.Tensor
    is_read: torch.Tensor
    bad_samples: list[BadSample]


class QuestionAnswerer(Pipeline):
    """
    Answers questions about clips, choosing among the answers that the model knows. Takes the arguments of
    [`Pipeline`].

    Example:

    ```python
    >>> answerer = QuestionAnswerer.from_pretrained("outputs/toy_questions")
    >>> answerer.answer("which shape do you see?", "clip.mp4", top_k=2)
    [Answer(text='circle', probability=0.98), Answer(text='square', probability=0.01)]
    ```
    """

    model_classes = {
        "MultimodalForQuestionAnswering": MultimodalForQuestionAnswering,
        "AlproForQuestionAnswering": AlproForQuestionAnswering,
    }
    remedy = "It chooses among known answers, which only models of --task question_answering have."

    def __call__(  # type: ignore[override]  # each pipeline has settings of its own
        self, inputs: Request | Sequence[Request], *, top_k: int = TOP_K_ANSWERS
    ) -> list[list[dict[str, Any]]]:
        """
        Answer requests, see [`Pipeline.__call__`].

        Args:
            inputs (`dict` or `Sequence[dict]`): `{"question": str, "clip": str}`, or several such requests; the clip
                is a media file, or a row as a dictionary.
            top_k (`int`, *optional*, defaults to 1): Number of answers per request.

        Returns:
            `list[list[dict]]`: Answers to each request, the most probable first: `{"answer": str, "score": float}`,
            where the score is the probability.

        Raises:
            MediaError: If a file cannot be read.
            ValueError: If a request is invalid, a question is blank, **or** a file has no modality of the model.
        """
        requests = as_requests(inputs, text="question", clips="clip")
        if not requests:
            return []
        rows, row_of = rows_of_clips([request["clip"] for request in requests])
        results = self._answer([request["question"] for request in requests], rows, row_of, top_k, "fail")
        return [[answer.to_dict() for answer in found] for found in results]

    def answer(
        self, questions: str | Sequence[str], clip: Clip, *, top_k: int = TOP_K_ANSWERS
    ) -> list[Answer] | list[list[Answer]]:
        """
        Answer questions about one clip.

        Args:
            questions (`str` or `Sequence[str]`): One question or several.
            clip (`str` or `dict`): Media file, or a row as a dictionary.
            top_k (`int`, *optional*, defaults to 1): Number of answers to return.

        Returns:
            `list[Answer]`: Answers, the most probable first; for several questions a list of such lists.

        Raises:
            MediaError: If the file cannot be read.
            ValueError: If a question is blank, **or** the file has no modality of the model.
        """
        asked = [questions] if isinstance(questions, str) else list(questions)
        rows, _ = rows_of_clips([clip])
        results = self._answer(asked, rows, [0] * len(asked), top_k, "fail")
        return results[0] if isinstance(questions, str) else results

    def answer_each(
        self,
        question: str,
        clips: Clips,
        *,
        top_k: int = TOP_K_ANSWERS,
        recursive: bool = False,
    ) -> dict[str, list[Answer]]:
        """
        Answer one question about each of several clips.

        Args:
            question (`str`): The question.
            clips: Rows (a data set, its manifest, dictionaries, a pandas DataFrame), or a media file, a folder, or a
                list of files. Rows that show the same clip count once. Clips of rows or of a folder that
                cannot be read are left out, with a warning.
            top_k (`int`, *optional*, defaults to 1): Number of answers to return.
            recursive (`bool`, *optional*, defaults to `False`): Whether to include the files in subfolders of a
                folder.

        Returns:
            `dict[str, list[Answer]]`: Answers to each clip, the most probable first, by the row's id or the name of
            the file, which is relative to a folder.

        Raises:
            MediaError: If a file that is given by name cannot be read.
            ValueError: If the question is blank, a file has no modality of the model, **or** more than
                `max_bad_fraction` of the clips, or all of them, cannot be read.
        """
        clips = open_clips(clips)
        if isinstance(clips, RowDataset):
            rows = self.rows(clips, recursive=recursive)
        else:
            rows = list(RowDataset.from_files(clips, recursive=recursive).rows(files="named"))
        is_chosen = not isinstance(clips, RowDataset) and not is_media_folder(clips)
        policy: Literal["skip", "fail"] = "fail" if is_chosen else "skip"
        results = self._answer([question] * len(rows), rows, range(len(rows)), top_k, policy)
        return {row["id"]: answers for row, answers in zip(rows, results, strict=True) if answers}

    def _answer(
        self,
        questions: Sequence[str],
        rows: Sequence[Row],
        row_of: Sequence[int],
        top_k: int,
        on_bad_sample: Literal["skip", "fail"],
    ) -> list[list[Answer]]:
        """Return the best answers to questions about files; an empty list if the file could not be read."""
        if any(not question.strip() for question in questions):
            raise InputError("A question is blank.")
        for row in rows:
            if not self.has_clip(row):
                raise InputError(f"{row['id']} has no frames, and this model takes no audio; pass a video file.")
        scores = self._scores(questions, rows, row_of, on_bad_sample=on_bad_sample)
        probabilities, chosen = scores.logits.softmax(dim=1).topk(min(top_k, scores.logits.shape[1]))
        id2label = self.model.config.id2label
        return [
            [Answer(id2label[label], value) for label, value in zip(labels, values, strict=True)] if is_read else []
            for labels, values, is_read in zip(
                chosen.tolist(), probabilities.tolist(), scores.is_read.tolist(), strict=True
            )
        ]

    def answer_rows(self, dataset: RowDataset, *, partial: str | os.PathLike[str] | None = None) -> QuestionScores:
        """
        Score all answers to every question of a data set; each clip runs through the towers once.

        Args:
            dataset ([`RowDataset`]): The questions. A question without a clip is answered from its text alone; a
                warning lists clips that cannot be read.
            partial (`str`, *optional*): Folder for finished parts, from which the same call resumes if it was
                interrupted. It is not removed.

        Returns:
            [`QuestionScores`]: Scores, the same on all processes.

        Raises:
            ValueError: If more than `max_bad_fraction` of the clips, or all of them, cannot be read.
        """
        rows = list(dataset.rows(files="named"))
        clips = list({ClipKey.of(row): row for row in reversed(rows)}.values())[::-1]  # first row of each clip
        place = {ClipKey.of(row): number for number, row in enumerate(clips)}
        clip_of = [place[ClipKey.of(row)] for row in rows]
        return self._scores([row["captions"][0] for row in rows], clips, clip_of, partial=partial)

    def _scores(
        self,
        questions: Sequence[str],
        clips: Sequence[Row],
        clip_of: Sequence[int],
        *,
        on_bad_sample: Literal["skip", "fail"] = "skip",
        partial: str | os.PathLike[str] | None = None,
    ) -> QuestionScores:
        folder = None if partial is None else Path(partial)
        key = "" if folder is None else self.key(clips)
        texts = list(dict.fromkeys(questions))
        text_of = {text: number for number, text in enumerate(texts)}
        encoded = self.encode_rows(clips, on_bad_sample=on_bad_sample, partial=folder, key=key)
        place = {row["index"]: number for number, row in enumerate(encoded.rows)}
        places = [place.get(row["index"]) for row in clips]
        pairs = [(text_of[question], places[clip]) for question, clip in zip(questions, clip_of, strict=True)]
        # The same question may be asked about one clip twice.
        unique = list(dict.fromkeys((text, clip) for text, clip in pairs if clip is not None))
        scores = self.score(
            self.model.answer_logits,
            texts,
            self.encode_texts(texts),
            encoded.clips,
            np.array(unique),
            partial=folder,
            key=key,
        )
        is_read = torch.tensor([clip is not None for _, clip in pairs])
        logits = torch.full((len(pairs), scores.shape[1]), torch.nan)
        number: dict[tuple[int, int | None], int] = {pair: place for place, pair in enumerate(unique)}
        logits[is_read] = scores[[number[pair] for pair in pairs if pair in number]]
        return QuestionScores(logits, is_read, encoded.bad_samples)

"""What a served model of each task does with a batch of queries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from simple_multimodal.data.rows import Row
from simple_multimodal.defaults import TOP_K_ANSWERS, TOP_K_CLIPS, TOP_K_LABELS
from simple_multimodal.inference.pipeline import Pipeline
from simple_multimodal.inference.requests import rows_of_clips
from simple_multimodal.serving.batches import read_row
from simple_multimodal.tasks.generation.translator import Translator
from simple_multimodal.tasks.question_answering.answerer import QuestionAnswerer
from simple_multimodal.tasks.retrieval.retriever import ClipIndex, Match, Retriever
from simple_multimodal.tasks.video_classification.classifier import VideoClassifier

Results = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Query:
    """
    One row that a client asks about.

    Args:
        batch (`dict[str, Any]`): Its clip, see [`read_row`]; without a clip, a batch of a row that lacks everything.
        name (`str`, *optional*): Name of the clip, if there is one.
        text (`str`, *optional*): Text, or question.
        top_k (`int`, *optional*, defaults to 0): Largest number of results; 0: an embedding is asked for.
        threshold (`float`, *optional*): Smallest score of a result.
    """

    batch: dict[str, Any]
    name: str | None = None
    text: str | None = None
    top_k: int = 0
    threshold: float | None = None

    @property
    def row(self) -> Row:
        """The row, as pipelines take it."""
        return read_row(self.name, self.batch)

    def cut(self, results: Results) -> Results:
        """Return what was asked for of more results, the best first."""
        return [
            result for result in results[: self.top_k] if self.threshold is None or result["score"] >= self.threshold
        ]


def classify(classifier: VideoClassifier, queries: Sequence[Query], index: ClipIndex | None) -> list[Results]:
    """Return the labels of each query, as [`VideoClassifier`] does."""
    found = classifier(
        [{"clip": query.row, "text": query.text or ""} for query in queries],
        top_k=max(query.top_k for query in queries),
    )
    return [query.cut(results) for query, results in zip(queries, found, strict=True)]


def answer(answerer: QuestionAnswerer, queries: Sequence[Query], index: ClipIndex | None) -> list[Results]:
    """Return the answers to each query, as [`QuestionAnswerer`] does."""
    found = answerer(
        [{"question": query.text, "clip": query.row} for query in queries],
        top_k=max(query.top_k for query in queries),
    )
    return [query.cut(results) for query, results in zip(queries, found, strict=True)]


def write(translator: Translator, queries: Sequence[Query], index: ClipIndex | None) -> list[Results]:
    """Return the text of each query's clip, as [`Translator`] does; the query's own text is the encoder's prompt."""
    return translator(
        [
            {"clip": query.row, **({} if query.text is None else {"encoder_prompt": query.text})}  # type: ignore[misc]
            for query in queries
        ]
    )


def embed(retriever: Retriever, queries: Sequence[Query], index: ClipIndex | None) -> list[torch.Tensor | Results]:
    """
    Return the unit-length embedding of each query's text, or of its clip if it has one; or the clips of the index
    that are closest to it, if results are asked for. All queries have a clip, or none has.
    """
    if queries[0].name is None:
        embeds = retriever.embed_texts([query.text or "" for query in queries])
    else:
        rows, numbers = rows_of_clips([query.row for query in queries])
        clips = retriever.encode_rows(rows, on_bad_sample="fail", with_tokens=False).clips
        embeds = torch.stack([clip.embed for clip in clips if clip.embed is not None])[numbers]
    return [
        query.cut(closest(index, own, query.top_k)) if query.top_k and index is not None else own
        for query, own in zip(queries, embeds, strict=True)
    ]


def closest(index: ClipIndex, embed: torch.Tensor, top_k: int) -> Results:
    """Return the clips of an index with the largest cosine, as [`Retriever.search`] finds them without re-ranking."""
    scores = index.embeds @ embed
    order = scores.argsort(descending=True, stable=True)[:top_k].tolist()
    return [Match(index.ids[clip], float(scores[clip])).to_dict() for clip in order]


class ServedTask(NamedTuple):
    """
    How models of a pipeline are served.

    Args:
        pipeline_class (`type[Pipeline]`): The pipeline.
        run (`Callable`): Function of the pipeline, queries that have the same kind of clip, and by name `index`, the
            clips to search, that returns the result of each query.
        item (`str`, *optional*): Key of what a result names, apart from its score; `None` for embeddings.
        top_k (`int`, *optional*, defaults to 0): Number of results if a client does not say.
        has_labels (`bool`, *optional*, defaults to `True`): Whether the items are labels of the model.
        needs_clip, needs_text (`bool`, *optional*, defaults to `False`): Whether a query must have a clip, or a text.
    """

    pipeline_class: type[Pipeline]
    run: Callable[..., list]
    item: str | None = None
    top_k: int = 0
    has_labels: bool = True
    needs_clip: bool = False
    needs_text: bool = False


SERVED_TASKS = (
    ServedTask(VideoClassifier, classify, "label", TOP_K_LABELS),
    ServedTask(QuestionAnswerer, answer, "answer", TOP_K_ANSWERS, needs_clip=True, needs_text=True),
    ServedTask(Translator, write, "text", 1, has_labels=False, needs_clip=True),
    ServedTask(Retriever, embed, top_k=TOP_K_CLIPS, has_labels=False),
)

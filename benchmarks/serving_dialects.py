"""Requests for the same clips and texts in every dialect of the server, and what the pipelines answer."""

import base64
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from serving_clients import form, infer, send_json

import simple_multimodal as smm
from simple_multimodal.inference.pipeline import Pipeline

ALL = ("top_k", 10_000)
QUESTIONS = ("which shape do you see?", "what do you hear?")


@dataclass(frozen=True)
class Asked:
    """
    A request, and where its answer stands among those of the pipeline.

    Args:
        dialect (`str`): Route and format.
        key (`str`): What is asked for.
        request (`bytes`): The request.
        number (`int`): Number of the clip or text.
        scores (`Callable`): Function of the JSON of the answer that returns its numbers.
    """

    dialect: str
    key: str
    request: bytes
    number: int
    scores: Callable[[Any], Any]


def scores_of(results: Iterable[dict[str, Any]]) -> list[float]:
    """Return scores in the order of the names that they belong to."""
    named = ((next(str(value) for key, value in own.items() if key != "score"), own["score"]) for own in results)
    return [score for _, score in sorted(named)]


def first_output(answer: Any) -> list[float]:
    return answer["outputs"][0]["data"]


def openai_floats(answer: Any) -> list[float]:
    data = base64.b64decode(answer["data"][0]["embedding"])
    return list(struct.unpack(f"<{len(data) // 4}f", data))


class Dialects:
    """
    Requests of all dialects, and the results of the pipelines for each kind of request.

    Args:
        pipelines (`dict[str, Pipeline]`): A pipeline of every kind by the name of its model.
        clips (`Sequence[Path]`): Clips.
        texts (`Sequence[str]`): A text for each clip.
        index ([`ClipIndex`]): Index of the clips.
    """

    def __init__(self, pipelines: dict[str, Pipeline], clips: Sequence[Path], texts: Sequence[str], index: Any):
        self.files = [str(clip) for clip in clips]
        self.contents = [clip.read_bytes() for clip in clips]
        self.texts = texts
        self.index = index
        self.requests: list[Asked] = []
        self.expected: dict[str, torch.Tensor] = {}
        kinds = {
            smm.Retriever: self._retrieval,
            smm.VideoClassifier: self._classes,
            smm.QuestionAnswerer: self._answers,
        }
        for name, pipeline in pipelines.items():
            kinds[type(pipeline)](name, pipeline)

    def _add(self, key: str, dialect: str, requests: Iterable[bytes], scores: Callable[[Any], Any]) -> None:
        self.requests += [Asked(dialect, key, request, number, scores) for number, request in enumerate(requests)]

    def _inference(self, key: str, name: str, pipeline: Pipeline, texts: Sequence[str] | None) -> None:
        """Add requests of the Open Inference Protocol, with JSON and with binary tensors."""
        labels = getattr(pipeline.model.config, "id2label", {})
        order = sorted(labels, key=labels.__getitem__)

        def scores(answer: Any) -> list[float]:
            values = first_output(answer)
            return values if texts is None else [values[place] for place in order]

        for binary in (False, True):
            rows = [{"video": [clip]} for clip in self.contents]
            if texts is not None:
                rows = [{**row, "text": [text]} for row, text in zip(rows, texts, strict=True)]
            requests = (infer(name, binary=binary, **row) for row in rows)
            self._add(key, f"/v2, {'binary' if binary else 'JSON'}", requests, scores)

    def _retrieval(self, name: str, pipeline: smm.Retriever) -> None:
        clips, texts = self.index.embeds, pipeline.embed_texts(self.texts)
        by_id = sorted(range(len(clips)), key=self.index.ids.__getitem__)
        self.expected |= {
            "embeddings of clips": clips, "clips like a clip": (clips @ clips.T)[:, by_id],
            "embeddings of texts": texts, "clips of a text": (texts @ clips.T)[:, by_id],
        }  # fmt: skip
        key, path, encoding = "embeddings of clips", "/v1/embeddings", ("encoding_format", "base64")
        forms = (form(f"/predictions/{name}", ("data", clip)) for clip in self.contents)
        self._add(key, "/predictions", forms, lambda answer: answer["embedding"])
        self._add(key, path, (form(path, ("data", clip), encoding) for clip in self.contents), openai_floats)
        self._inference(key, name, pipeline, None)
        forms = (form("/search", ("data", clip), ALL) for clip in self.contents)
        self._add("clips like a clip", "/search, form", forms, scores_of)
        bodies = (send_json("/search", {"text": text, ALL[0]: ALL[1]}) for text in self.texts)
        self._add("clips of a text", "/search, JSON", bodies, scores_of)
        bodies = (send_json(path, {"input": text}) for text in self.texts)
        self._add("embeddings of texts", f"{path}, JSON", bodies, lambda answer: answer["data"][0]["embedding"])

    def _classes(self, name: str, pipeline: smm.VideoClassifier) -> None:
        path, several = f"/predictions/{name}", {ALL[0]: ALL[1]}
        key, both_key = "labels of clips", "labels of clips with text"
        self.expected[key] = torch.tensor([scores_of(own) for own in pipeline(self.files, **several)])
        both = [{"clip": clip, "text": text} for clip, text in zip(self.files, self.texts, strict=True)]
        self.expected[both_key] = torch.tensor([scores_of(own) for own in pipeline(both, **several)])
        self._add(key, "/predictions", (form(path, ("data", clip), ALL) for clip in self.contents), scores_of)
        pairs = zip(self.contents, self.texts, strict=True)
        self._add(both_key, "/predictions", (form(path, ("data", c), ("script", t), ALL) for c, t in pairs), scores_of)
        self._inference(both_key, name, pipeline, self.texts)

    def _answers(self, name: str, pipeline: smm.QuestionAnswerer) -> None:
        key, both_key = "answers", "answers to two questions"
        by_question = [
            [
                scores_of(own)
                for own in pipeline([{"clip": clip, "question": text} for clip in self.files], top_k=ALL[1])
            ]
            for text in QUESTIONS
        ]
        self.expected[key] = torch.tensor(by_question[0])
        self.expected[both_key] = torch.tensor(by_question).transpose(0, 1).flatten(1)
        forms = (form(f"/predictions/{name}", ("data", c), ("text", QUESTIONS[0]), ALL) for c in self.contents)
        self._add(key, "/predictions", forms, scores_of)
        asks = [("question", text) for text in QUESTIONS]
        forms = (form("/answer", ("data", clip), *asks, ALL) for clip in self.contents)
        self._add(both_key, "/answer", forms, lambda answer: [score for own in answer for score in scores_of(own)])
        self._inference(key, name, pipeline, [QUESTIONS[0]] * len(self.files))

"""Search clips by text."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from simple_multimodal.alpro import AlproForRetrieval
from simple_multimodal.data.bad_samples import BadSample
from simple_multimodal.data.files import is_media_folder
from simple_multimodal.data.rows import Row, RowDataset, clip_file
from simple_multimodal.data.store import INDEX_FILE, ClipStore, Unreadable, describe_difference
from simple_multimodal.defaults import TOP_K_CLIPS
from simple_multimodal.errors import InputError
from simple_multimodal.inference.encoded import ClipVersion, EncodedRows
from simple_multimodal.inference.pipeline import Pipeline, cosine, from_main
from simple_multimodal.inference.requests import ClipKey, Clips, Request, as_requests, open_clips
from simple_multimodal.models.base import hash_weights
from simple_multimodal.models.pairs import Encoded, ranking_scores
from simple_multimodal.tasks.retrieval.modeling import MultimodalForRetrieval

logger = logging.get_logger(__name__)


class Match(NamedTuple):
    """A clip that was found.

    Args:
        id (`str`): Id of the clip's row, by default its number; for a folder or files, the name of the file.
        score (`float`): Cosine of the text's and the clip's embedding.
        matching (`float`, *optional*): The matching head's probability that they belong together, if the clip was
            re-ranked; re-ranked clips are sorted by [`ranking_scores`].
        file (`str`, *optional*): Absolute path of the clip's video, or of its audio if there is no video.
    """

    id: str
    score: float
    matching: float | None = None
    file: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the match as a result of a request, see [`Retriever.__call__`]."""
        result = {"clip": self.id, "score": self.score}
        return result if self.matching is None else {**result, "matching": self.matching}


@dataclass(repr=False)
class ClipIndex:
    """
    Clips to search.

    Args:
        ids (`list[str]`): Ids of the clips.
        groups (`list[str]`): Group of each clip; clips of one group count as the same.
        embeds (`torch.FloatTensor` of shape `(num_clips, contrastive_dim)`): Unit-length embeddings.
        clips (`list[Encoded]`, *optional*): Encoded clips, which re-ranking needs; they are not saved.
        key (`str`, *optional*): Hash of the model and the clips, which identifies finished parts, if these are kept.
        model (`str`, *optional*): Hash of the model's weights, for saved embeddings.
        precision (`str`, *optional*): Precision in which the model computed, for saved embeddings.
        bad_samples (`list[BadSample]`, *optional*): Clips that are not in the index because they could not be read.
        files (`list[str]`, *optional*): Path of each clip's video, or of its audio if there is no video.
    """

    ids: list[str]
    groups: list[str]
    embeds: torch.Tensor
    clips: list[Encoded] | None = None
    key: str = ""
    model: str = ""
    precision: str = "fp32"
    bad_samples: list[BadSample] = field(default_factory=list)
    files: list[str | None] | None = None

    def __repr__(self) -> str:
        unread = f", {len(self.bad_samples)} could not be read" if self.bad_samples else ""
        return f"ClipIndex({len(self.ids)} clips, {self.embeds.shape[1]} dimensions{unread})"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ClipIndex":
        """
        Load the embeddings that [`Retriever.index`] saved.

        Args:
            path (`str`): Folder of the embeddings, or the `*.safetensors` file of an earlier version.

        Raises:
            ValueError: If `path` is not a clip index.
        """
        path = Path(path)
        if path.is_dir():
            return cls._of(ClipStore.open(path, ClipVersion))
        try:
            with safe_open(path, "pt") as file:
                index = cls(embeds=file.get_tensor("embeds").clone(), **json.loads(file.metadata()["index"]))
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise InputError(f"{path} is not a clip index: {error}") from error
        index.bad_samples = [BadSample(*sample) for sample in index.bad_samples]
        return index

    @classmethod
    def _of(cls, store: ClipStore[ClipVersion]) -> "ClipIndex":
        clips = [clip for clip in store if clip not in store.unreadable]
        return cls(
            [clip.id for clip in clips],
            [clip.group for clip in clips],
            store.stack("embed"),
            model=store.fingerprint["weights"],
            precision=store.fingerprint["precision"],
            bad_samples=[
                BadSample(row, 0, clip.id, *store.unreadable[clip])
                for row, clip in enumerate(store)
                if clip in store.unreadable
            ],
            files=[clip.file for clip in clips],
        )


class _Saved(NamedTuple):
    """Saved embeddings of rows.

    Args:
        places (`dict[int, int]`): Position of each row's embedding in `embeds`.
        embeds (`torch.FloatTensor` of shape `(num_clips, contrastive_dim)`): Embeddings, which may include other rows.
        bad_samples (`list[BadSample]`): Rows that could not be read.
    """

    places: dict[int, int] = {}
    embeds: torch.Tensor | None = None
    bad_samples: list[BadSample] = []

    @classmethod
    def of(cls, saved: Path, fingerprint: Mapping[str, Any], rows: Sequence[Row]) -> "_Saved":
        """Load saved embeddings; empty if there are none yet, or if they were made with another model or settings.

        Raises:
            ValueError: If the path holds something that embeddings must not overwrite.
        """
        if saved.is_file():
            ClipIndex.load(saved)
            return cls()
        if not (saved / INDEX_FILE).exists():
            return cls()
        store = ClipStore.open(saved, ClipVersion)
        if difference := describe_difference(store.fingerprint, fingerprint):
            logger.warning(f"{saved} was made with other settings: {difference}. Its embeddings will be replaced.")
            return cls()
        place_of = {clip: place for place, clip in enumerate(c for c in store if c not in store.unreadable)}
        places, bad_samples = {}, []
        for row in rows:
            clip = ClipVersion.of(row)
            if clip in place_of:
                places[row["index"]] = place_of[clip]
            elif clip in store.unreadable:
                bad_samples.append(BadSample(row["index"], row["epoch"], row["id"], *store.unreadable[clip]))
        return cls(places, store.stack("embed"), bad_samples)


class Retriever(Pipeline):
    """
    Searches clips by text: index them once, then search as often as you like.

    Clips are sorted by the cosine of the embeddings. The matching head, which sees text and clip together, can re-rank
    the first ones; it does so by default if that was better on the validation split during training
    ([`rerank_top_k`]). Takes the arguments of [`Pipeline`].

    Example:

    ```python
    >>> retriever = Retriever.from_pretrained("outputs/toy")
    >>> index = retriever.index("my_clips/")
    >>> index
    ClipIndex(2 clips, 128 dimensions)
    >>> best, other = retriever.search("a red circle goes to the left while slow notes play", index, top_k=2)
    >>> best
    Match(id='b.mp4', score=0.81, matching=None, file='/home/me/my_clips/b.mp4')
    ```
    """

    model_classes = {
        "MultimodalForPreTraining": MultimodalForRetrieval,
        "MultimodalForRetrieval": MultimodalForRetrieval,
        "AlproForRetrieval": AlproForRetrieval,
    }
    remedy = "It compares embeddings, which only models of --task pretraining or --task retrieval have."

    @property
    def rerank_top_k(self) -> int:
        """Number of candidates that are re-ranked by default; 0 if re-ranking was not better on the validation split
        during training, or was not measured.
        """
        return self.model.config.rerank_top_k or 0

    @property
    def reranks(self) -> bool:
        """Whether matching is used by default; true for models saved by versions that did not measure that."""
        is_unknown = self.model.config.rerank_top_k is None and self.model.cosine_weight == 0
        return self.rerank_top_k > 0 or is_unknown

    def __call__(  # type: ignore[override]  # each pipeline has settings of its own
        self,
        inputs: Request | Sequence[Request],
        *,
        top_k: int = TOP_K_CLIPS,
        rerank: int | None = None,
    ) -> list[list[dict[str, Any]]]:
        """
        Search for each request, see [`Pipeline.__call__`].

        Args:
            inputs (`dict` or `Sequence[dict]`): `{"text": str, "clips": ...}`, or several such requests; the clips are
                those that [`search`] accepts: a [`ClipIndex`], a saved one, or clips.
            top_k, rerank (`int`, *optional*): As for [`search`].

        Returns:
            `list[list[dict]]`: Matches of each request, best first: `{"clip": str, "score": float}` with the id of the
            clip and the cosine; for re-ranked clips also `"matching"`, the matching head's probability.

        Raises:
            MediaError: If a file that is given by name cannot be read.
            ValueError: If a request is invalid, **or** for the reasons listed in [`search`].
        """
        requests = as_requests(inputs, text="text", clips="clips")
        indices = self._index_each([request["clips"] for request in requests], for_matching=bool(rerank))
        results: list[list[dict[str, Any]]] = [[] for _ in requests]
        for index in {id(index): index for index in indices}.values():
            places = [place for place, own in enumerate(indices) if own is index]
            found = self.search([requests[place]["text"] for place in places], index, top_k=top_k, rerank=rerank)
            for place, matches in zip(places, found, strict=True):
                results[place] = [match.to_dict() for match in matches]  # type: ignore[union-attr]
        return results

    def _index_each(self, clips_of_all: Sequence[ClipIndex | Clips], *, for_matching: bool) -> list[ClipIndex]:
        """Return an index for each request, the same one for the same clips; no clip is encoded twice."""
        indices: dict[tuple, ClipIndex] = {}  # by the clips in it
        rows_of: dict[tuple, list[Row]] = {}
        names: list[tuple] = []
        is_chosen = False
        for clips in clips_of_all:
            name: tuple
            if isinstance(clips, ClipIndex):
                name = ("index", id(clips))
                indices[name] = clips
            elif is_saved_index(clips):
                name = ("file", os.fspath(clips))  # type: ignore[arg-type]
                if name not in indices:
                    indices[name] = self.load_index(clips)  # type: ignore[arg-type]
            else:
                clips = open_clips(clips)
                is_chosen |= not isinstance(clips, RowDataset) and not is_media_folder(clips)
                rows = self.rows(clips)
                name = tuple((row["id"], row["group"], ClipKey.of(row)) for row in rows)
                rows_of[name] = rows
            names.append(name)
        if rows_of:
            unique = {ClipKey.of(row): row for rows in rows_of.values() for row in rows}
            numbered: list[Row] = [{**row, "index": number} for number, row in enumerate(unique.values())]
            shared = self.index_rows(numbered, on_bad_sample="fail" if is_chosen else None, for_matching=for_matching)
            bad = {sample.row for sample in shared.bad_samples}
            place_of: dict[ClipKey, int] = {}
            for number, key in enumerate(unique):
                if number not in bad:
                    place_of[key] = len(place_of)
            indices |= {name: _part_of(shared, rows, place_of) for name, rows in rows_of.items()}
        return [indices[name] for name in names]

    def index(
        self,
        clips: Clips,
        *,
        saved: str | os.PathLike[str] | None = None,
        for_matching: bool = False,
        partial: str | os.PathLike[str] | None = None,
        recursive: bool = False,
    ) -> ClipIndex:
        """
        Encode clips with the towers. Clips of a data set or a folder that cannot be read are left out, with a warning.

        Args:
            clips: Rows (a data set, its manifest, dictionaries, a pandas DataFrame), or a media file, a folder, or a
                list of files. Rows that show the same clip count once.
            saved (`str`, *optional*): Folder to keep the embeddings in. Clips whose embeddings it already has, from
                the same model and files, are not encoded again; clips that are no longer given are removed from it.
                Embeddings of another model are replaced, and so is a file that an earlier version saved. The index
                cannot be re-ranked then: that takes hundreds of times as much data, which is neither saved nor held in
                memory.
            for_matching (`bool`, *optional*, defaults to `False`): Whether clips will be re-ranked in spite of
                `saved`, which encodes them again even if their embeddings are saved.
            partial (`str`, *optional*): Folder for finished parts, from which the same call resumes if it was
                interrupted. It is not removed.
            recursive (`bool`, *optional*, defaults to `False`): Whether to include the files in subfolders of a
                folder.

        Raises:
            MediaError: If a file that is given by name cannot be read.
            ValueError: If there is no clip, more than `max_bad_fraction` of them, or all of them, cannot be read,
                **or** `for_matching` is set and the model has no matching head.
        """
        clips = open_clips(clips)
        is_chosen = not isinstance(clips, RowDataset) and not is_media_folder(clips)
        return self.index_rows(
            self.rows(clips, recursive=recursive),
            on_bad_sample="fail" if is_chosen else None,
            saved=saved,
            for_matching=for_matching,
            partial=partial,
        )

    def index_rows(
        self,
        rows: Sequence[Row],
        *,
        on_bad_sample: Literal["skip", "fail"] | None = None,
        saved: str | os.PathLike[str] | None = None,
        for_matching: bool = False,
        partial: str | os.PathLike[str] | None = None,
    ) -> ClipIndex:
        """Index rows of different clips, see [`index`]; `on_bad_sample` is as in [`encode_rows`]."""
        if not rows:
            raise InputError(
                "There is no clip to index: none has a file for a modality of this model "
                f"({', '.join(self.processor.modalities)})."
            )
        if for_matching:
            self.model.check_matching()  # before hours of encoding
        on_bad_sample = on_bad_sample or self.on_bad_sample
        fingerprint = {} if saved is None and partial is None else self.fingerprint()
        found = _Saved() if saved is None else from_main(lambda: _Saved.of(Path(saved), fingerprint, rows))
        if for_matching:
            found = _Saved()
        self.warn_of(found.bad_samples)
        self.check_bad_samples(found.bad_samples, len(rows), on_bad_sample)
        known = {*found.places, *(sample.row for sample in found.bad_samples)}
        missing = [row for row in rows if row["index"] not in known]
        versions = [ClipVersion.of(row) for row in rows] if saved is not None and self.state.is_main_process else []
        with_tokens = saved is None or for_matching
        encoded = EncodedRows([], [], [])
        if missing:
            encoded = self.encode_rows(
                missing,
                on_bad_sample=on_bad_sample,
                with_tokens=with_tokens,
                partial=None if partial is None else Path(partial),
                key="" if partial is None else self.key(missing, fingerprint),
                num_samples=len(rows),
            )
        bad_samples = sorted([*found.bad_samples, *encoded.bad_samples])
        self.check_bad_samples(bad_samples, len(rows), on_bad_sample)
        parts = [] if found.embeds is None else [found.embeds]
        first = sum(map(len, parts))
        places = found.places | {row["index"]: first + n for n, row in enumerate(encoded.rows)}
        parts += [clip.embed[None] for clip in encoded.clips if clip.embed is not None]
        read = [row for row in rows if row["index"] in places]
        index = ClipIndex(
            [row["id"] for row in read],
            [row["group"] for row in read],
            torch.cat(parts)[[places[row["index"]] for row in read]],
            encoded.clips if with_tokens else None,
            "" if partial is None else self.key(rows, fingerprint),
            bad_samples=bad_samples,
            files=[clip_file(row) for row in read],
        )
        if saved is not None and self.state.is_main_process:
            _save(Path(saved), fingerprint, dict(zip(versions, rows, strict=True)), encoded)
        return index

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the unit-length embeddings of texts, `(num_texts, contrastive_dim)`, to compare with those of a
        [`ClipIndex`].
        """
        return torch.stack([text.embed for text in self.encode_texts(texts) if text.embed is not None])

    def load_index(self, path: str | os.PathLike[str]) -> ClipIndex:
        """
        Load an index that this model has saved, without reading its clips.

        Raises:
            ValueError: If it is not a clip index, **or** was made with another model or precision, so that its
                embeddings cannot be compared with those of texts.
        """
        index = ClipIndex.load(path)
        try:
            self.check_index(index)
        except InputError as error:
            raise InputError(f"{os.fspath(path)}: {error}") from None
        return index

    def check_index(self, index: ClipIndex) -> None:
        """
        Check that the embeddings of an index can be compared with those of this model.

        Raises:
            ValueError: If it was made with another model or precision.
        """
        if not self.has_made(index):
            raise InputError(
                "The index was made with another model; encode the clips again with the one that searches them."
            )
        if index.precision != self.precision:
            raise InputError(
                f"The index holds embeddings computed in {index.precision}, but this model computes in "
                f"{self.precision}. Set precision={index.precision!r}, or encode the clips again."
            )

    def has_made(self, index: ClipIndex) -> bool:
        """Return whether an index was made with the weights of this model."""
        return index.model == hash_weights(self.model)

    def _open_index(self, clips: Clips, *, for_matching: bool, recursive: bool) -> ClipIndex:
        if is_saved_index(clips):
            if recursive:
                raise InputError(
                    f"recursive applies to folders of media files, but {os.fspath(clips)} holds saved embeddings. "  # type: ignore[arg-type]
                    "Leave it out."
                )
            return self.load_index(clips)  # type: ignore[arg-type]
        return self.index(clips, for_matching=for_matching, recursive=recursive)

    def search(
        self,
        texts: str | Sequence[str],
        index: ClipIndex | Clips,
        *,
        top_k: int = TOP_K_CLIPS,
        rerank: int | None = None,
        recursive: bool = False,
    ) -> list[Match] | list[list[Match]]:
        """
        Find the best clips for a text.

        Args:
            texts (`str` or `Sequence[str]`): One text or several.
            index ([`ClipIndex`] or clips): Clips to search. Clips that are not an index, as [`index`] takes them, are
                indexed for this call only; a folder of embeddings that [`index`] saved is searched directly.
            top_k (`int`, *optional*, defaults to 10): Number of clips to return.
            rerank (`int`, *optional*): Number of candidates that the matching head re-ranks; by default
                [`rerank_top_k`], or 0 if the index holds only embeddings.
            recursive (`bool`, *optional*, defaults to `False`): Whether to include the files in subfolders of a
                folder.

        Returns:
            `list[Match]`: Matches, best first; for several texts a list of such lists.

        Raises:
            ValueError: If a text is blank, **or** `rerank` is set for an index whose clips were not encoded in this
                process.
        """
        queries = [texts] if isinstance(texts, str) else list(texts)
        if any(not query.strip() for query in queries):
            raise InputError("A text to search for is blank. Leave it out.")
        if not isinstance(index, ClipIndex):
            index = self._open_index(index, for_matching=bool(rerank), recursive=recursive)
        if rerank is None:
            rerank = 0 if index.clips is None else self.rerank_top_k
        if rerank > 0 and index.clips is None:
            raise InputError("This index holds embeddings alone. To re-rank, index the clips without `saved`.")
        if not queries:
            return []
        encoded = self.encode_texts(queries)
        scores = cosine(encoded, index.embeds)  # (texts, clips)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, : max(top_k, rerank)].tolist()
        matching: dict[tuple[int, int], float] = {}
        ranked: dict[tuple[int, int], float] = {}
        if rerank > 0 and index.clips is not None:
            pairs = [(text, clip) for text, best in enumerate(order) for clip in best[:rerank]]
            logits = self.score(self.model.matching_logits, queries, encoded, index.clips, np.array(pairs))
            cosines = torch.stack([scores[pair] for pair in pairs])
            matching = dict(zip(pairs, logits.softmax(dim=1)[:, 1].tolist(), strict=True))
            ranked = dict(zip(pairs, ranking_scores(self.model, logits, cosines).tolist(), strict=True))
        results = []
        for text, best in enumerate(order):
            first = sorted(best[:rerank], key=lambda clip: -ranked[text, clip])  # stable: ties stay by cosine
            results.append(
                [
                    Match(
                        index.ids[clip],
                        float(scores[text, clip]),
                        matching.get((text, clip)),
                        None if index.files is None else index.files[clip],
                    )
                    for clip in (first + best[rerank:])[:top_k]
                ]
            )
        return results[0] if isinstance(texts, str) else results


def is_saved_index(clips: object) -> bool:
    """Return whether clips to search are an index that [`Retriever.index`], or an earlier version, saved."""
    if not isinstance(clips, (str, os.PathLike)):
        return False
    path = Path(clips)
    if path.is_dir():
        return (path / INDEX_FILE).is_file() and any(path.glob("*.parquet"))
    return path.suffix == ".safetensors"


def _part_of(index: ClipIndex, rows: Sequence[Row], place_of: Mapping[ClipKey, int]) -> ClipIndex:
    """Return the part of an index that holds these rows, except those that could not be read."""
    read = [row for row in rows if ClipKey.of(row) in place_of]
    places = [place_of[ClipKey.of(row)] for row in read]
    clips = None if index.clips is None else [index.clips[place] for place in places]
    return ClipIndex(
        [row["id"] for row in read],
        [row["group"] for row in read],
        index.embeds[places],
        clips,
        files=[clip_file(row) for row in read],
    )


def _save(saved: Path, fingerprint: Mapping[str, Any], rows: Mapping[ClipVersion, Row], encoded: EncodedRows) -> None:
    """Add new embeddings to the saved ones, and remove those of clips that are not in `rows`."""
    if saved.is_file():  # from an earlier version
        saved.unlink()
    store = ClipStore.resume(saved, ClipVersion, fingerprint, replaces=True)
    made: dict[int, dict[str, torch.Tensor] | Unreadable]
    made = {sample.row: Unreadable(sample.file, sample.reason) for sample in encoded.bad_samples}
    for row, clip in zip(encoded.rows, encoded.clips, strict=True):
        assert clip.embed is not None
        made[row["index"]] = {"embed": clip.embed[None]}
    missing = {version: rows[version]["index"] for version in store.missing(rows)}
    if missing:
        store.append(store.next_number, {version: made[row] for version, row in missing.items() if row in made})
    if missing or len(store) > len(rows):
        store.keep_only(rows)
        store.commit()

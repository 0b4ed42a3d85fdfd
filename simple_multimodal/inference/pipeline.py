"""Load a trained model with its processor, read clips for it, and encode each clip once."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import logging

import simple_multimodal.alpro  # noqa: F401  (registers its configuration)
from simple_multimodal.data.bad_samples import BadSample, BadSampleError
from simple_multimodal.data.batch_reader import BatchReader, SupervisedReader
from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.features import open_features
from simple_multimodal.data.loader_processes import protected
from simple_multimodal.data.records import FILE_COLUMNS
from simple_multimodal.data.rows import Row, RowDataset
from simple_multimodal.defaults import (
    BATCH_SIZE,
    DECODE_DEVICE,
    LOADER_MEMORY_GIGABYTES,
    MAX_BAD_FRACTION,
    SAMPLE_TIMEOUT_SECONDS,
    VIDEO_BACKEND,
    Precision,
)
from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.precision import (
    autocast,
    check_precision,
    choose_precision,
    precision_mismatch,
)
from simple_multimodal.evaluation.scores import Processes
from simple_multimodal.inference.encoded import (
    ClipVersion,
    EncodedBatch,
    EncodedRows,
    encode_batch,
    pack,
    sum_by_name,
    unpack,
)
from simple_multimodal.inference.partial import Partial, process_state
from simple_multimodal.inference.requests import ClipKey, Clips, Request, clips_alone, open_clips
from simple_multimodal.media.errors import MediaError
from simple_multimodal.missing import reading_model, refuse_part_of_run
from simple_multimodal.modalities import CLIP_MODALITIES, Modality
from simple_multimodal.models.base import hash_weights
from simple_multimodal.models.distributed import decide_in_first_process, gather_objects
from simple_multimodal.models.loading import without_bars
from simple_multimodal.models.pairs import (
    CLIP_TOKENS_PER_BATCH,
    PAIRS_PER_BATCH,
    Encoded,
    encode_texts,
    score_pairs,
)
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.progress import can_show_bars

logger = logging.get_logger(__name__)

TEXTS_PER_BATCH = 64


def from_main(make: Callable[[], Any]) -> Any:
    """Return the result of `make` in the main process on all processes, so that they cannot disagree."""
    process_state()  # `decide_in_first_process` needs it
    return decide_in_first_process(make)


class Pipeline:
    """
    A trained model with its processor, for inference. Several processes of a launcher (`accelerate launch`,
    `torchrun`) share the work; each returns all results.

    Args:
        model (`PreTrainedModel`): Model, which is moved to the device of this process and set to evaluation mode.
        processor ([`MultimodalProcessor`]): Its processor.
        batch_size (`int`, *optional*, defaults to 16): Number of clips that the towers encode at once.
        num_workers (`int`, *optional*, defaults to 0): Number of processes that read clips; with 0, threads of this
            process do.
        drop_modalities (`Sequence[str]`, *optional*): Modalities to treat as missing in every clip.
        shows_progress (`bool`, *optional*, defaults to `False`): Whether to show progress bars, in a terminal or
            notebook.
        video_backend, decode_device, index_dir (`str`, *optional*): See [`MultimodalCollator`].
        max_bad_fraction (`float`, *optional*, defaults to 0.2): Largest fraction of clips that may be unreadable
            before an error is raised; with `None` there is no limit, and the caller has to warn of bad samples.
        sample_timeout_seconds, loader_memory_gigabytes (`float`, *optional*, defaults to 120.0 and 4.0): With
            `num_workers`, limits for reading one file, see [`SupervisedReader`].
        features (`str`, *optional*): Folder that [`TowerFeatures`] wrote. The towers whose features it holds are not
            run, and their files are not read; every clip must have features.
        precision (`str`, *optional*, defaults to `"fp32"`): Precision in which the model computes: `"fp32"`, `"bf16"`
            or `"fp16"`, like `--bf16` and `--fp16` of a training run.
        on_bad_sample (`str`, *optional*, defaults to `"skip"`): What to do if a clip of a data set or a folder cannot
            be read: `"skip"` warns and continues with the others, `"fail"` raises an error.
        collator ([`MultimodalCollator`], *optional*): Collator that reads the clips, instead of one that is built from
            the other arguments.
        on_batch (`Callable`, *optional*): Function called after each batch with this process's number of batches.

    Raises:
        ValueError: If `max_bad_fraction` is not in [0, 1], the features belong to another model, **or** the precision
            is not available on this device.
    """

    model_classes: Mapping[str, type[PreTrainedModel]] | None
    """Class to load each kind of checkpoint as, by the name of the saved class; `None` loads any, without its head."""

    remedy = "Train a model with the --task that the command is for."
    """What to do about a model of another task, as the end of a message."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: MultimodalProcessor,
        *,
        batch_size: int = BATCH_SIZE,
        num_workers: int = 0,
        drop_modalities: Sequence[str] = (),
        shows_progress: bool = False,
        video_backend: str = VIDEO_BACKEND,
        decode_device: str = DECODE_DEVICE,
        index_dir: str | None = None,
        max_bad_fraction: float | None = MAX_BAD_FRACTION,
        sample_timeout_seconds: float = SAMPLE_TIMEOUT_SECONDS,
        loader_memory_gigabytes: float = LOADER_MEMORY_GIGABYTES,
        features: str | os.PathLike[str] | None = None,
        precision: Precision = "fp32",
        on_bad_sample: Literal["skip", "fail"] = "skip",
        collator: MultimodalCollator | None = None,
        on_batch: Callable[[int], None] = lambda num_batches: None,
    ):
        if max_bad_fraction is not None and not 0 <= max_bad_fraction <= 1:
            raise InputError(f"max_bad_fraction={max_bad_fraction} is not a fraction; give a number from 0 to 1.")
        self.max_bad_fraction = max_bad_fraction
        self.sample_timeout_seconds = sample_timeout_seconds
        self.loader_memory_gigabytes = loader_memory_gigabytes
        self.state = process_state()
        check_precision(precision, self.state.device.type)
        model.check_precision(precision)
        self.precision: Precision = precision
        device = torch.empty(0, device=self.state.device).device  # accelerate's "cpu:0" is torch's "cpu"
        if model.device != device:  # `to` would shard a model that was gathered for evaluation again
            model.to(device)
        self.model = model.eval()
        self.processor = processor
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.shows_progress = shows_progress and self.state.is_main_process
        self.on_bad_sample = on_bad_sample
        self.on_batch = on_batch
        if collator is not None:
            self.collator = collator
            return
        readers = (
            {}
            if features is None
            else open_features(
                features,
                self.model.tower_hash,
                processor,
                video_backend=video_backend,
                decode_device=decode_device,
            )
        )
        self.collator = MultimodalCollator(
            processor,
            drop_modalities=drop_modalities,  # type: ignore[arg-type]
            video_backend=video_backend,
            decode_device=decode_device,
            index_dir=index_dir,
            features={m: reader for m, reader in readers.items() if m not in drop_modalities},
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        cache_dir: str | None = None,
        precision: Precision | None = None,
        **settings,
    ) -> Self:
        """
        Load a trained model and its processor.

        Args:
            name_or_path (`str`): Folder or hub name of a trained model.
            cache_dir (`str`, *optional*): Cache folder for files from the hub.
            precision (`str`, *optional*): As for the class; by default the precision in which the model was evaluated
                during training, according to the folder's `run.json`, else `"fp32"`. A different one is logged.
            settings: Other arguments of the class.

        Raises:
            ValueError: If there is no such model, it was trained for another task, **or** its weights are incomplete
                or damaged.
            OSError: If the model has no weights as safetensors.
        """
        refuse_part_of_run(name_or_path)
        with reading_model(name_or_path, cache_dir=cache_dir):
            config = AutoConfig.from_pretrained(name_or_path, cache_dir=cache_dir, trust_remote_code=False)
        saved_class = (config.architectures or ["an unknown class"])[0]
        if cls.model_classes is not None and saved_class not in cls.model_classes:
            raise InputError(
                f"{name_or_path} holds {saved_class}, a model of another task; {cls.__name__} takes "
                f"{', '.join(cls.model_classes)}. {cls.remedy}"
            )
        model_class = AutoModel if cls.model_classes is None else cls.model_classes[saved_class]
        with without_bars():
            model, loaded = model_class.from_pretrained(name_or_path, cache_dir=cache_dir, output_loading_info=True)
        if loaded["missing_keys"]:
            raise InputError(f"{name_or_path} lacks the weights {sorted(loaded['missing_keys'])[:3]}.")
        processor = MultimodalProcessor.from_pretrained(name_or_path, cache_dir=cache_dir)
        state = process_state()
        precision = choose_precision(precision, name_or_path, state.device.type)
        if state.is_main_process and (line := precision_mismatch(name_or_path, precision)) is not None:
            logger.warning(line)
        return cls(model, processor, precision=precision, **settings)

    def __call__(self, inputs: Request | Sequence[Request], **settings: Any) -> list[list[dict[str, Any]]]:
        """
        Serve requests, with results in the format of transformers pipelines. The requests of one call are batched: a
        clip that several of them name is encoded once.

        Args:
            inputs (`dict` or `Sequence[dict]`): One request or several; the entries depend on the pipeline.
            settings: Settings of the pipeline for all requests, such as `top_k`.

        Returns:
            `list[list[dict]]`: Results of each request, in order, the best first; each has a `score` and the item that
            it belongs to. A single request also returns a list of one list.

        Raises:
            MediaError: If a file that a request names cannot be read.
            ValueError: If a request is invalid.
        """
        raise NotImplementedError(f"{type(self).__name__} does not serve requests.")

    @property
    def worker_context(self) -> str | None:
        """Start method of loader processes: `"spawn"` if they decode on a GPU, else the default."""
        return "spawn" if self.num_workers and self.collator.decode_device != "cpu" else None

    @property
    def processes(self) -> Processes:
        """Processes that share the work."""
        return Processes(self.state.process_index, self.state.num_processes, gather_objects)

    def autocast(self) -> AbstractContextManager:
        """Return a context in which the model computes in `precision`."""
        return autocast(self.precision, self.state.device.type)

    def rows(self, clips: Clips, *, recursive: bool = False) -> list[Row]:
        """Return one row per distinct clip, in the order of first occurrence, leaving out rows without a clip.
        `recursive` includes the files in subfolders of a folder.
        """
        source = open_clips(clips)
        if isinstance(source, RowDataset) and recursive:
            raise InputError("`recursive` applies to folders, but rows name their files. Leave it out.")
        dataset = source if isinstance(source, RowDataset) else RowDataset.from_files(source, recursive=recursive)
        unique: dict[ClipKey, Row] = {}
        for row in dataset.rows(files="named"):
            if self.has_clip(row):
                unique.setdefault(ClipKey.of(row), row)
        return list(unique.values())

    def takes(self, modality: Modality) -> bool:
        """Return whether the model uses a modality."""
        return modality in self.processor.modalities and modality not in self.collator.drop_modalities

    def has_clip(self, row: Row) -> bool:
        """Return whether a row has a clip modality that this model uses."""
        return any(self.collator.has(row, m) for m in self.processor.modalities if m in CLIP_MODALITIES)

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that affects how a clip is encoded, as JSON values by name; the same on all processes."""
        return from_main(
            lambda: {
                "weights": hash_weights(self.model),
                "config": hashlib.sha256(self.model.config.to_json_string().encode()).hexdigest(),
                "processor": hashlib.sha256(self.processor.to_json_string().encode()).hexdigest(),
                "precision": self.precision,
                "decoder": self.collator.decoder,
                "drop_modalities": list(self.collator.drop_modalities),
                "feature_dtypes": {modality: reader.dtype for modality, reader in self.collator.features.items()},
                # Files that exceed these limits are bad samples.
                "sample_timeout_seconds": self.sample_timeout_seconds,
                "loader_memory_gigabytes": self.loader_memory_gigabytes,
            }
        )

    def key(self, rows: Sequence[Row], fingerprint: Mapping[str, Any] | None = None) -> str:
        """Return a hash of the [`fingerprint`] and the clips (path, segment, size and modification time), the same on
        all processes.
        """
        made_of = self.fingerprint() if fingerprint is None else fingerprint

        def digest() -> str:
            digest = hashlib.sha256(json.dumps(made_of).encode())
            for row in rows:
                digest.update(json.dumps(ClipVersion.of(row)).encode())
            return digest.hexdigest()

        return from_main(digest)

    def encode_rows(
        self,
        rows: Sequence[Row],
        *,
        on_bad_sample: Literal["skip", "fail"] | None = None,
        with_tokens: bool = True,
        partial: Path | None = None,
        key: str = "",
        encode: Callable[[PreTrainedModel, dict[str, torch.Tensor]], EncodedBatch] = encode_batch,
        with_text: bool = False,
        num_samples: int | None = None,
    ) -> EncodedRows:
        """
        Encode the clip of each row once with the towers. Neither the batches nor the results depend on the number of
        processes.

        Args:
            rows (`Sequence[Row]`): Rows of different clips, at least one.
            on_bad_sample (`str`, *optional*): As for the class, whose value is the default.
            with_tokens (`bool`, *optional*, defaults to `True`): Whether to keep the tokens, which the fusion takes,
                or only the embeddings.
            partial (`Path`, *optional*): Folder for finished batches, from which the call resumes; only if `encode`
                returns no sums.
            key (`str`, *optional*): With `partial`, [`key`] of the rows, and of everything that `encode` depends on.
            encode (`Callable`, *optional*): Function that encodes a batch; by default with the towers.
            with_text (`bool`, *optional*, defaults to `False`): Whether batches include the rows' texts.
            num_samples (`int`, *optional*): Number of samples that `max_bad_fraction` refers to, if the rows are only
                some of them.

        Returns:
            [`EncodedRows`]: Encoded rows, the same on all processes.

        Raises:
            MediaError: If a file cannot be read, with `"fail"`; the message names it and its row.
            ValueError: If more than `max_bad_fraction` of the clips, or all of them, cannot be read, **or** `features`
                are used and a clip has none.
        """
        on_bad_sample = on_bad_sample or self.on_bad_sample
        num_samples = num_samples or len(rows)
        for reader in self.collator.features.values():
            reader.check_rows(rows)
        # Find out about a wrong folder before any of its files is read.
        self.check_bad_samples(self._absent(rows), num_samples, on_bad_sample)
        batches = [range(n, min(n + self.batch_size, len(rows))) for n in range(0, len(rows), self.batch_size)]
        share = range(self.state.process_index, len(batches), self.state.num_processes)
        parts = Partial(partial, "clips", f"{key} {self.batch_size} {with_tokens}")
        own = {n: unpack([rows[place] for place in batches[n]], contents) for n, contents in parts.finished.items()}
        bad_samples = [sample for _, samples in own.values() for sample in samples]
        missing = [number for number in share if number not in own]
        loader: DataLoader = DataLoader(
            list(rows) if with_text else clips_alone(rows),  # type: ignore[arg-type]
            batch_sampler=[list(batches[number]) for number in missing],
            collate_fn=self._reader(self.collator),
            num_workers=self.num_workers,
            multiprocessing_context=self.worker_context,
        )
        done = sum(len(batches[number]) for number in own)
        total = sum(len(batches[number]) for number in share)
        with tqdm(
            unit="clips", total=total, initial=done, disable=not (self.shows_progress and can_show_bars())
        ) as bar:
            for number, batch in zip(missing, protected(loader), strict=True):
                bad = batch.pop("bad_samples", [])
                bad_samples += bad
                self.check_bad_samples(bad_samples, num_samples, on_bad_sample)
                bad_rows = {sample.row for sample in bad}
                with torch.no_grad(), self.autocast():
                    encoded = encode(self.model, send_to_device(batch, self.model.device))
                is_read = [rows[place]["index"] not in bad_rows for place in batches[number]]
                clips = [
                    clip if with_tokens else Encoded(clip.embed, {})
                    for clip, is_good in zip(encoded.clips, is_read, strict=True)
                    if is_good
                ]
                values = {name: value[torch.tensor(is_read)] for name, value in encoded.values.items()}
                own[number] = EncodedBatch(clips, values, encoded.sums), bad
                if partial is not None:
                    assert not encoded.sums  # they would be lost
                    parts.add(number, pack([rows[place] for place in batches[number]], own[number][0], bad))
                bar.update(len(is_read))
                self.on_batch(len(missing))
        parts.flush()
        gathered = dict(part for parts in gather_objects(own) for part in parts.items())
        in_order = [gathered[number] for number in range(len(batches))]
        bad_samples = sorted(sample for _, samples in in_order for sample in samples)
        self.warn_of(bad_samples)
        self.check_bad_samples(bad_samples, num_samples, on_bad_sample)
        bad_rows = {sample.row for sample in bad_samples}
        encoded_batches = [encoded for encoded, _ in in_order]
        names = dict.fromkeys(name for encoded in encoded_batches for name in encoded.values)
        return EncodedRows(
            [row for row in rows if row["index"] not in bad_rows],
            [clip for encoded in encoded_batches for clip in encoded.clips],
            bad_samples,
            # A batch that was kept without any readable row has no values.
            {
                name: torch.cat([batch.values[name] for batch in encoded_batches if name in batch.values])
                for name in names
            },
            sum_by_name(encoded.sums for encoded in encoded_batches),
        )

    def _reader(self, collator: MultimodalCollator) -> BatchReader | SupervisedReader:
        if not collator.opens_files:
            return BatchReader(None, collator)
        # Without workers, reading a file that takes too long could only be stopped by ending this process.
        return SupervisedReader(
            BatchReader(None, collator, on_bad_sample="skip"),
            timeout_seconds=self.sample_timeout_seconds if self.num_workers else 0.0,
            memory_gigabytes=self.loader_memory_gigabytes,
        )

    def _absent(self, rows: Sequence[Row]) -> list[BadSample]:
        """Return a bad sample for each row with a file that does not exist."""
        if not self.collator.opens_files:
            return []
        read = [m for m in self.processor.modalities if m in FILE_COLUMNS and m != "text" and self.takes(m)]
        found: dict[int, BadSample] = {}
        for row in rows:
            for file in [row[m] for m in read]:  # type: ignore[literal-required]
                if file is not None and not os.path.exists(file):
                    found[row["index"]] = BadSampleError.of(row, file, f"{file!r}: does not exist").sample
        return list(found.values())

    def warn_of(self, bad_samples: Sequence[BadSample]) -> None:
        """Log a warning for each bad sample, in the main process."""
        for sample in bad_samples if self.state.is_main_process and self.max_bad_fraction is not None else ():
            logger.warning(f"Bad sample: {sample}")

    def check_bad_samples(
        self, bad_samples: Sequence[BadSample], num_samples: int, on_bad_sample: Literal["skip", "fail"] = "skip"
    ) -> None:
        """
        Raise an error if there are too many bad samples.

        Args:
            bad_samples (`Sequence[BadSample]`): Samples that could not be read.
            num_samples (`int`): Number of all samples.
            on_bad_sample (`str`, *optional*, defaults to `"skip"`): With `"fail"`, one bad sample is too many.

        Raises:
            MediaError: If there is a bad sample, with `"fail"`.
            ValueError: If more than `max_bad_fraction` of the samples, or all of them, are bad.
        """
        if not bad_samples:
            return
        if on_bad_sample == "fail":
            raise MediaError(str(bad_samples[0]))
        num_bad = len(bad_samples)
        if self.max_bad_fraction is None:
            return
        if num_bad == num_samples or num_bad > self.max_bad_fraction * num_samples:
            limit = "" if num_bad == num_samples else f", more than `max_bad_fraction={self.max_bad_fraction:g}`"
            raise InputError(
                f"{num_bad} of {num_samples} samples could not be read{limit}; the last one: "
                f"{bad_samples[-1].reason.rstrip('.')}. Check `video_root`, or the folder of the clips."
            )

    def encode_texts(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode each distinct text once, in every process, because texts are cheap."""
        order = sorted(dict.fromkeys(texts), key=len)  # similar lengths: little padding
        encoded: dict[str, Encoded] = {}
        for begin in range(0, len(order), TEXTS_PER_BATCH):
            some = order[begin : begin + TEXTS_PER_BATCH]
            batch = send_to_device(self.processor.tokenize(some), self.model.device)
            with self.autocast():
                encoded |= zip(some, encode_texts(self.model, batch), strict=True)
        return [encoded[text] for text in texts]

    def score(
        self,
        score: Callable[..., torch.Tensor],
        texts: Sequence[str],
        encoded: Sequence[Encoded],
        clips: Sequence[Encoded],
        pairs: np.ndarray,
        *,
        partial: Path | None = None,
        key: str = "",
    ) -> torch.Tensor:
        """
        Score pairs of text and clip with the fusion layers; the processes share the work.

        Args:
            score (`Callable`): A method of the model, `matching_logits` or `answer_logits`.
            texts (`Sequence[str]`), encoded (`Sequence[Encoded]`): The texts, and the same texts after encoding.
            clips (`Sequence[Encoded]`): The encoded clips.
            pairs (`np.ndarray` of shape `(num_pairs, 2)`): Positions of text and clip.
            partial (`Path`, *optional*): Folder for finished blocks of pairs, from which the call resumes.
            key (`str`, *optional*): With `partial`, [`key`] of the clips' rows.

        Returns:
            `torch.FloatTensor` of shape `(num_pairs, num_outputs)`, the same on all processes.
        """
        if partial is not None:
            digest = hashlib.sha256(json.dumps([key, list(texts), PAIRS_PER_BATCH, CLIP_TOKENS_PER_BATCH]).encode())
            digest.update(pairs.tobytes())
            key = digest.hexdigest()
        parts = Partial(partial, "pairs", key)
        scores = score_pairs(
            self.model,
            score,
            encoded,
            clips,
            pairs,
            process_index=self.state.process_index,
            num_processes=self.state.num_processes,
            autocast=self.autocast,
            pairs_per_batch=PAIRS_PER_BATCH,
            finished={n: block["outputs"] for n, (block,) in parts.finished.items() if isinstance(block, dict)},
            on_block=lambda number, outputs: parts.add(number, [{"outputs": outputs}]),
            shows_progress=self.shows_progress,
        )
        parts.flush()
        return scores


def cosine(texts: Sequence[Encoded], embeds: torch.Tensor) -> torch.Tensor:
    """Return the cosines `(num_texts, num_clips)` of texts with unit-length clip embeddings."""
    return torch.stack([text.embed for text in texts if text.embed is not None]) @ embeds.T

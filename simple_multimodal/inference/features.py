"""Run frozen towers once over every clip of manifests, and save their tokens."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from accelerate.utils import gather_object, send_to_device
from torch.utils.data import DataLoader
from tqdm import tqdm

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.features import ClipKey, ClipTokens, EarlierFeatures, make_fingerprint
from simple_multimodal.data.loader_processes import protected
from simple_multimodal.data.records import FILE_COLUMNS
from simple_multimodal.data.rows import Row, RowDataset
from simple_multimodal.data.store import ClipStore, Unreadable, describe_difference
from simple_multimodal.defaults import CLIPS_PER_SHARD
from simple_multimodal.errors import InputError
from simple_multimodal.inference.pipeline import Pipeline, from_main
from simple_multimodal.inference.requests import clips_alone
from simple_multimodal.media.errors import MediaError
from simple_multimodal.modalities import CLIP_MODALITIES, Modality
from simple_multimodal.models.base import EncoderOutput
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.processing.processing_multimodal import PARTS
from simple_multimodal.progress import can_show_bars


class FeatureReport(NamedTuple):
    """
    Result of [`TowerFeatures.write`].

    Args:
        num_clips (`int`): Number of distinct clips of the manifests that have features now.
        num_made (`int`): Number of clips whose features this call made.
        unreadable (`list[str]`): Error messages of the other clips.
    """

    num_clips: int
    num_made: int
    unreadable: list[str]


class TowerFeatures(Pipeline):
    """
    Runs one tower of a saved model of any task over clips. Takes the arguments of [`Pipeline`].

    Example:

    ```python
    >>> features = TowerFeatures.from_pretrained("outputs/toy")
    >>> features.write("video", [RowDataset.from_manifest("train.csv")], "features")
    FeatureReport(num_clips=9000, num_made=9000, unreadable=[])
    ```
    """

    model_classes = None  # only towers are needed, with any head

    def write(
        self,
        tower: Modality,
        datasets: Sequence[RowDataset],
        output: str | os.PathLike[str],
        *,
        shard_size: int = CLIPS_PER_SHARD,
        dtype: torch.dtype = torch.float32,
    ) -> FeatureReport:
        """
        Write the tokens of every distinct clip to `{output}/{tower}`, a [`ClipStore`], with frames sampled as in
        evaluation and without dropout. Clips that are already there are not encoded again, so that an interrupted call
        resumes where it stopped, and further manifests can be added. Every process writes its own shards; the main one
        writes the index last.

        Args:
            tower (`str`): `"audio"`, `"video"` or `"pose"`.
            datasets (`Sequence[RowDataset]`): Data sets with the clips to encode.
            output (`str`): Folder to write to.
            shard_size (`int`, *optional*, defaults to 128): Number of clips per file; about that many are lost if the
                process is killed.
            dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): Data type of the tokens in the files.

        Raises:
            ValueError: If the model has no such tower, no row has a clip for it, **or** the folder holds features of
                another tower, with other settings, or of another `dtype`.
        """
        if tower not in self.processor.modalities:
            raise InputError(f"This model has no {tower} tower; it has {', '.join(self.processor.modalities)}.")
        if tower not in FILE_COLUMNS or tower not in CLIP_MODALITIES:
            raise InputError(f"Features need the files of clips, and {tower} has none. Leave this tower out.")
        if shard_size < 1:
            raise InputError(f"shard_size must be at least 1, got {shard_size}.")
        collator = MultimodalCollator(
            MultimodalProcessor(**{PARTS[tower].name: self.processor.part(tower)}),
            video_backend=self.collator.video_backend,
            decode_device=self.collator.decode_device,
            index_dir=self.collator.index_dir,
        )
        folder = Path(output, tower)
        tower_hash = self.model.tower_hash(tower)
        fingerprint = {
            **make_fingerprint(tower, tower_hash, self.processor, video_backend=self.collator.decoder),
            "dtype": str(dtype).removeprefix("torch."),
            "precision": self.precision,
        }
        for dataset in datasets:
            dataset.check_links()
        rows, unreadable = from_main(lambda: _different_clips(datasets, tower))
        store = from_main(lambda: _open_store(folder, fingerprint))  # before any process writes
        if not rows:
            raise InputError(f"No row of the manifests has readable {tower}. {' '.join(unreadable)}".strip())

        keys = list(rows)
        missing = [number for number, key in enumerate(keys) if key not in store or key in store.unreadable]
        shards = [missing[first : first + shard_size] for first in range(0, len(missing), shard_size)]
        first_shard = store.next_number
        own = range(self.state.process_index, len(shards), self.state.num_processes)
        batches = [
            shards[number][first : first + self.batch_size]
            for number in own
            for first in range(0, len(shards[number]), self.batch_size)
        ]
        # Renumber the rows: each manifest counts its own.
        listed = [cast(Row, {**row, "index": number}) for number, row in enumerate(rows.values())]
        loader: DataLoader = DataLoader(
            clips_alone(listed),  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=self._reader(collator),
            num_workers=self.num_workers,
            multiprocessing_context=self.worker_context,
        )
        loaded = iter(protected(loader))
        bad: dict[ClipKey, Unreadable] = {}
        done, total = len(rows) - len(missing), sum(map(len, batches))
        try:
            with tqdm(
                unit="clips", total=done + total, initial=done, disable=not (self.shows_progress and can_show_bars())
            ) as bar:
                for number in own:
                    kept: dict[ClipKey, dict[str, torch.Tensor]] = {}
                    for first in range(0, len(shards[number]), self.batch_size):
                        own_rows = shards[number][first : first + self.batch_size]
                        batch = next(loaded)
                        unread = {s.row: Unreadable(s.file, s.reason) for s in batch.pop("bad_samples", [])}
                        clips = self._encode(tower, batch, dtype)
                        kept |= {keys[n]: c._asdict() for n, c in zip(own_rows, clips, strict=True) if n not in unread}
                        bad |= {keys[n]: found for n, found in unread.items()}
                        bar.update(len(own_rows))
                    store.append(first_shard + number, kept)
        finally:
            del loaded  # which ends its processes, even if the error that ended the loop is kept
        bad = {key: found for part in gather_object([bad]) for key, found in part.items()}
        if len(bad) == len(rows):
            raise InputError(f"None of the clips can be read: {next(iter(bad.values())).reason}")
        if self.state.is_main_process:
            news = {key: found for key, found in bad.items() if store.unreadable.get(key) != found}
            store.append(first_shard + len(shards), news)
            store.commit()
        self.state.wait_for_everyone()
        messages = [*unreadable, *(f"{rows[key]['id']!r}: {found.reason}" for key, found in bad.items())]
        return FeatureReport(len(rows) - len(bad), len(missing) - len(bad), messages)

    @torch.no_grad()
    def _encode(self, tower: Modality, batch: dict[str, torch.Tensor], dtype: torch.dtype) -> list[ClipTokens]:
        """Return the tokens of each row of a batch, on the CPU."""
        with self.autocast():
            output: EncoderOutput = self.model.base_model.encode(tower, send_to_device(batch, self.model.device))
        tokens, mask = output.tokens.to(dtype).cpu(), output.mask.cpu()
        seconds = torch.zeros(mask.shape) if output.seconds is None else output.seconds.float().cpu()
        # Cut padding after the last real token, because it depends on the other clips of the batch.
        lengths = (mask * torch.arange(1, mask.shape[1] + 1)).amax(dim=1).tolist()
        return [
            ClipTokens(*(values[row, :length].clone() for values in (tokens, mask, seconds)))
            for row, length in enumerate(lengths)
        ]


def _different_clips(datasets: Sequence[RowDataset], tower: Modality) -> tuple[dict[ClipKey, Row], list[str]]:
    """Return a row per distinct clip, in the order of first occurrence, and the errors of rows that cannot be read."""
    rows: dict[ClipKey, Row] = {}
    unreadable = []
    for dataset in datasets:
        for index in range(len(dataset)):
            try:
                row = dataset[index]
                if row[tower] is not None:  # type: ignore[literal-required]
                    rows.setdefault(ClipKey.of(row, tower, dataset.relative_path(row, tower)), row)
            except (MediaError, OSError) as error:
                unreadable.append(str(error))
    return rows, unreadable


def _open_store(folder: Path, fingerprint: dict[str, Any]) -> ClipStore[ClipKey]:
    """Open the folder for writing, after converting features of an earlier version."""
    if EarlierFeatures.are_in(folder):
        earlier = EarlierFeatures(folder)
        if difference := describe_difference(earlier.fingerprint, fingerprint):
            raise InputError(f"{folder} was made with other settings: {difference}. Choose another folder.")
        earlier.convert()
    return ClipStore.resume(folder, ClipKey, fingerprint)

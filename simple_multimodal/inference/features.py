"""Run frozen towers once over every clip of manifests, and keep their tokens in files."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from accelerate.utils import gather_object, send_to_device
from safetensors import SafetensorError, safe_open
from torch.utils.data import DataLoader
from tqdm import tqdm

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.features import INDEX_FILE, ClipKey, ClipTokens, make_fingerprint
from simple_multimodal.data.rows import Row, RowDataset
from simple_multimodal.data.store import describe_difference
from simple_multimodal.defaults import CLIPS_PER_SHARD
from simple_multimodal.inference.partial import save_whole
from simple_multimodal.inference.pipeline import Pipeline, clips_alone, from_main
from simple_multimodal.media.errors import MediaError
from simple_multimodal.modalities import Modality
from simple_multimodal.models.base import EncoderOutput
from simple_multimodal.output_folder import write_atomically
from simple_multimodal.processing import MultimodalProcessor

Places = dict[ClipKey, tuple[str, int]]
"""Shard and number of each clip."""


class FeatureReport(NamedTuple):
    """
    Args:
        num_clips (`int`): different clips of the manifests that have features now.
        num_made (`int`): those among them that this call made.
        unreadable (`list[str]`): what is wrong with the others.
    """

    num_clips: int
    num_made: int
    unreadable: list[str]


class TowerFeatures(Pipeline):
    """
    Runs one tower of a saved model of any task over clips. Arguments are those of [`Pipeline`].

    Example:

    ```python
    >>> features = TowerFeatures.from_pretrained("outputs/toy")
    >>> features.write("video", [RowDataset.from_manifest("train.csv")], "features")
    FeatureReport(num_clips=9000, num_made=9000, unreadable=[])
    ```
    """

    model_classes = None  # whatever its head is, its towers alone are loaded

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
        Write the tokens of every different clip to `{output}/{tower}`: frames as evaluation takes them, the tower
        without dropout. Clips that are there already are not run again, so that an interrupted call goes on where it
        was, and further manifests can be added. Every process writes shards of its own, each whole or not at all; the
        main one writes `index.json` last.

        Args:
            tower (`str`): `"audio"` or `"video"`.
            datasets (`Sequence[RowDataset]`): whose clips.
            output (`str`): folder.
            shard_size (`int`, *optional*, defaults to 128): clips in a file; about so many are lost if the process is
                killed.
            dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): of the tokens in the files.

        Raises:
            ValueError: If the model has no such tower, no row has a clip for it, or the folder holds features of
                another tower, that were read in another way, or of another `dtype`.
        """
        if tower not in self.processor.modalities:
            raise ValueError(f"There is no {tower} tower: this model has {', '.join(self.processor.modalities)}.")
        if shard_size < 1:
            raise ValueError(f"A shard has 1 clip or more, got {shard_size}.")
        collator = MultimodalCollator(
            MultimodalProcessor(
                feature_extractor=self.processor.feature_extractor if tower == "audio" else None,
                video_processor=self.processor.video_processor if tower == "video" else None,
            ),
            video_backend=self.collator.video_backend,
            decode_device=self.collator.decode_device,
            index_dir=self.collator.index_dir,
        )
        folder = Path(output, tower)
        tower_hash = self.model.tower_hash(tower)
        made_of = {
            "fingerprint": make_fingerprint(tower, tower_hash, self.processor, video_backend=self.collator.decoder),
            "dtype": str(dtype).removeprefix("torch."),
            "precision": self.precision,
        }
        for dataset in datasets:
            dataset.check_links()
        rows, unreadable = from_main(lambda: _different_clips(datasets, tower))
        stored = from_main(lambda: _stored(folder, made_of))  # before any process writes
        if not rows:
            raise ValueError(f"No row of the manifests has {tower} that can be read. {' '.join(unreadable)}".strip())

        keys = list(rows)
        missing = [number for number, key in enumerate(keys) if key not in stored]
        shards = [missing[first : first + shard_size] for first in range(0, len(missing), shard_size)]
        first_shard = 1 + max((int(Path(name).stem) for name, _ in stored.values()), default=-1)
        own = range(self.state.process_index, len(shards), self.state.num_processes)
        batches = [
            shards[number][first : first + self.batch_size]
            for number in own
            for first in range(0, len(shards[number]), self.batch_size)
        ]
        # Numbered anew: each manifest counts its own rows.
        listed = [cast(Row, {**row, "index": number}) for number, row in enumerate(rows.values())]
        loader: DataLoader = DataLoader(
            clips_alone(listed),  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=self._reader(collator),
            num_workers=self.num_workers,
            multiprocessing_context=self.worker_context,
        )
        loaded = iter(loader)
        bad: dict[ClipKey, str] = {}
        done, total = len(rows) - len(missing), sum(map(len, batches))
        with tqdm(unit="clips", total=done + total, initial=done, disable=not self.shows_progress) as bar:
            for number in own:
                kept: dict[ClipKey, ClipTokens] = {}
                for first in range(0, len(shards[number]), self.batch_size):
                    own_rows = shards[number][first : first + self.batch_size]
                    batch = next(loaded)
                    reasons = {sample.row: sample.reason for sample in batch.pop("bad_samples", [])}
                    clips = self._encode(tower, batch, dtype)
                    kept |= {keys[n]: clip for n, clip in zip(own_rows, clips, strict=True) if n not in reasons}
                    bad |= {keys[n]: reason for n, reason in reasons.items()}
                    bar.update(len(own_rows))
                _save_shard(folder / f"{first_shard + number:05d}.safetensors", kept, made_of)
        bad = {key: reason for part in gather_object([bad]) for key, reason in part.items()}
        if len(bad) == len(rows):
            raise ValueError(f"None of the clips can be read: {next(iter(bad.values()))}")
        if self.state.is_main_process:
            _write_index(folder, made_of, bad)
        self.state.wait_for_everyone()
        messages = [*unreadable, *(f"{rows[key]['id']!r}: {reason}" for key, reason in bad.items())]
        return FeatureReport(len(rows) - len(bad), len(missing) - len(bad), messages)

    @torch.no_grad()
    def _encode(self, tower: Modality, batch: dict[str, torch.Tensor], dtype: torch.dtype) -> list[ClipTokens]:
        """Tokens of each row of a batch, on the CPU."""
        with self.autocast():
            output: EncoderOutput = self.model.base_model.encode(tower, send_to_device(batch, self.model.device))
        tokens, mask = output.tokens.to(dtype).cpu(), output.mask.cpu()
        seconds = torch.zeros(mask.shape) if output.seconds is None else output.seconds.float().cpu()
        # Up to the last token that is real: how far a clip is padded is the business of its batch.
        lengths = (mask * torch.arange(1, mask.shape[1] + 1)).amax(dim=1).tolist()
        return [
            ClipTokens(*(values[row, :length].clone() for values in (tokens, mask, seconds)))
            for row, length in enumerate(lengths)
        ]


def _different_clips(datasets: Sequence[RowDataset], tower: Modality) -> tuple[dict[ClipKey, Row], list[str]]:
    """A row for each clip, in the order of their first occurrence, and what is wrong with rows that have no file."""
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


def _save_shard(path: Path, clips: dict[ClipKey, ClipTokens], made_of: dict[str, Any]) -> None:
    """Write a file that says what is in it, for the index to be made of."""
    tensors = {
        f"{number}.{name}": values
        for number, clip in enumerate(clips.values())
        for name, values in clip._asdict().items()
    }
    metadata = {"made_of": json.dumps(made_of), "clips": json.dumps([key._asdict() for key in clips])}
    if clips:
        save_whole(path, tensors, metadata)


def _stored(folder: Path, made_of: dict[str, Any]) -> Places:
    """What the shards of a folder hold; damaged ones are removed.

    Raises:
        ValueError: If they hold something else than what is to be made.
    """
    places: Places = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
        except (SafetensorError, OSError):
            path.unlink()
            continue
        there = json.loads(metadata["made_of"])
        flat = [
            {**of["fingerprint"], "dtype": of["dtype"], "precision": of.get("precision", "fp32")}
            for of in (there, made_of)
        ]
        if difference := describe_difference(*flat):
            raise ValueError(f"{folder}: holds features of something else: {difference}. Give another folder.")
        for number, clip in enumerate(json.loads(metadata["clips"])):
            places[ClipKey(**clip)] = path.name, number
    for path in folder.glob("*.tmp"):  # what a process was writing when it was killed
        path.unlink()
    return places


def _write_index(folder: Path, made_of: dict[str, Any], bad: dict[ClipKey, str]) -> None:
    """Write `index.json`, whole or not at all."""
    places = _stored(folder, made_of)
    path = folder / INDEX_FILE
    earlier = json.loads(path.read_text(encoding="utf-8"))["unreadable"] if path.is_file() else []
    known = {ClipKey(*(clip[name] for name in ClipKey._fields)): clip["reason"] for clip in earlier}
    name, number = next(iter(places.values()))
    with safe_open(folder / name, "pt") as file:
        hidden_size = file.get_slice(f"{number}.tokens").get_shape()[1]
    index = {
        **made_of,
        "hidden_size": hidden_size,
        "clips": [{**key._asdict(), "shard": name, "row": number} for key, (name, number) in places.items()],
        "unreadable": [
            {**key._asdict(), "reason": reason} for key, reason in (known | bad).items() if key not in places
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")

"""How many clips a core prepares per second, and the step time below which a device waits for them.

python benchmarks/waits.py CLIPS [--max_clips 36] [--batch 32] [--repeats 3]

CLIPS is a folder with `clips.jsonl` and the files that it names. Its training clips are read as originals, packed, and
as features of base-sized towers of audio and video (random values, which cost the same to read). A clip is 16 frames
at 224 x 224, 10 s of audio as log-mel and a text, in training. CPU seconds of one thread are measured, so that other
load matters less; the time that C cores need for a batch follows by division. This assumes that cores add up and share
nothing; `packed.py` measures the cost of handing a batch to the training process.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import torch
from packed import processor

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.features import ClipTokens, FeatureReader
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.inference.features import TowerFeatures
from simple_multimodal.modalities import Modality
from simple_multimodal.prepare.clips import clips_jsonl_to_manifests
from simple_multimodal.prepare.pack import pack_manifest
from simple_multimodal.processing import MultimodalProcessor
from simple_multimodal.tasks.retrieval.modeling import MultimodalForRetrieval

CORES = (4, 8, 16)
TOKENS: dict[Modality, tuple[int, int]] = {"audio": (496, 768), "video": (1568, 768)}
"""Number and size of a clip's tokens, for ViT-MAE-base over one window and for VideoMAE-base."""


class RandomTokens(TowerFeatures):
    """Writes random tokens instead of a tower's."""

    def _encode(self, tower: Modality, batch: dict[str, torch.Tensor], dtype: torch.dtype) -> list[ClipTokens]:
        num_tokens, hidden_size = TOKENS[tower]
        return [
            ClipTokens(
                torch.randn(num_tokens, hidden_size).to(dtype),
                torch.ones(num_tokens, dtype=torch.bool),
                torch.linspace(0, 10, num_tokens),
            )
            for _ in batch["row_ids"]
        ]


def write_features(dataset: RowDataset, folder: Path, dtype: torch.dtype) -> dict[Modality, FeatureReader]:
    """Write features of every clip, and return their readers."""
    import stand_ins

    pipeline = RandomTokens(MultimodalForRetrieval(stand_ins.model_config("toy")), processor(), num_workers=0)
    for tower in TOKENS:
        pipeline.write(tower, [dataset], folder, dtype=dtype)
    return {tower: FeatureReader(folder / tower, tower) for tower in TOKENS}


def read_all(dataset: RowDataset, collator: MultimodalCollator, batch: int) -> float:
    """Return the CPU seconds of reading every row once, in batches, in this thread."""
    rows = [dataset[(0, number)] for number in range(len(dataset))]
    start = time.process_time()
    for first in range(0, len(rows), batch):
        collator(rows[first : first + batch])
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path)
    parser.add_argument("--max_clips", type=int, default=36)
    parser.add_argument("--batch", type=int, default=32, help="rows of a step; default: 32")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = clips_jsonl_to_manifests(options.clips / "clips.jsonl", folder)["train"]
        lines = Path(manifest).read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / "some.jsonl").write_text("".join(lines[: options.max_clips]), encoding="utf-8")
        pack_manifest(folder / "some.jsonl", folder / "packed", video_root=options.clips)
        originals = RowDataset.from_manifest(
            folder / "some.jsonl", roots={"video": options.clips}, modalities=("audio", "video")
        )
        packed = RowDataset.from_manifest(next((folder / "packed").glob("*.jsonl")), modalities=("audio", "video"))
        sources: dict[str, tuple[RowDataset, MultimodalCollator]] = {}
        for what, dataset in (("originals", originals), ("packed clips", packed)):
            sources[what] = dataset, MultimodalCollator(processor(), training=True, parallel=False)
        for dtype in (torch.float32, torch.bfloat16):
            readers = write_features(originals, folder / str(dtype), dtype)
            parts: MultimodalProcessor = processor()
            collator = MultimodalCollator(parts, training=True, parallel=False, features=readers)
            sources[f"features, {str(dtype).removeprefix('torch.')}"] = originals, collator
        for dataset, collator in sources.values():
            read_all(dataset, collator, options.batch)  # indices, and files in the page cache
        seconds: dict[str, list[float]] = {what: [] for what in sources}
        for repeat in range(options.repeats):
            for what in list(sources) if repeat % 2 == 0 else list(sources)[::-1]:
                seconds[what].append(read_all(*sources[what], options.batch))
    results: dict[str, Any] = {"clips": len(lines[: options.max_clips]), "batch": options.batch, "sources": {}}
    print(f"| | clips/s per core | {' | '.join(f'{cores} cores' for cores in CORES)} |")
    for what, values in seconds.items():
        rate = results["clips"] / statistics.median(values)
        steps = {cores: 1000 * options.batch / (cores * rate) for cores in CORES}
        results["sources"][what] = {"cpu_seconds": values, "clips_per_core_second": rate, "step_ms": steps}
        print(f"| {what} | {rate:.1f} | {' | '.join(f'{value:.0f} ms' for value in steps.values())} |")
    common.save("waits", results)


if __name__ == "__main__":
    main()

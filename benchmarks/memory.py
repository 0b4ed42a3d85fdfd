"""Ten epochs over clips through loader workers: resident memory, threads and open files after each.

python benchmarks/memory.py CLIPS_FOLDER TRAIN_MANIFEST [--epochs 10]
"""

import argparse
import gc
from pathlib import Path

import common
import numpy as np
import psutil
from torch.utils.data import DataLoader

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.sampler import EpochSampler
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor


def state() -> dict[str, float]:
    """Return memory, threads and open files of this process and its workers."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return {
        "megabytes": sum(process.memory_full_info().pss for process in processes) / 1e6,
        "threads": sum(process.num_threads() for process in processes),
        "handles": sum(process.num_fds() for process in processes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("manifest")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    results = {}
    for num_workers in (0, 2):
        dataset = RowDataset.from_manifest(options.manifest, roots={"video": options.folder}, modalities=())
        processor = MultimodalProcessor(AudioFeatureExtractor(max_windows=1), VideoClipProcessor())
        sampler = EpochSampler(dataset, seed=0)
        loader = DataLoader(
            dataset,
            batch_size=6,
            sampler=sampler,
            collate_fn=MultimodalCollator(processor, training=True, num_threads=2 // max(num_workers, 1)),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )
        states = []
        for epoch in range(options.epochs):
            sampler.set_epoch(epoch)
            for _ in loader:
                pass
            gc.collect()
            states.append(state())
            print(f"{num_workers} workers, epoch {epoch}: " + ", ".join(f"{v:.0f} {k}" for k, v in states[-1].items()))
        later = states[2:]  # after two epochs the caches are full
        slopes = {key: float(np.polyfit(range(len(later)), [s[key] for s in later], 1)[0]) for key in later[0]}
        print(f"  slope per epoch from the third on: { ({k: round(v, 3) for k, v in slopes.items()}) }")
        results[f"{num_workers} workers"] = {"epochs": states, "slope_per_epoch": slopes}
        del loader
        gc.collect()
    common.save("memory", results)


if __name__ == "__main__":
    main()

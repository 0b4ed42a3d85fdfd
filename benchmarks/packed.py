"""Packed data against the originals: clips per second, bytes, fidelity; and how long a training step waits for either.

simple-multimodal pack TRAIN_MANIFEST PACKED --video_root CLIPS_FOLDER
python benchmarks/packed.py CLIPS_FOLDER TRAIN_MANIFEST PACKED/train.jsonl

The step simulates a device: it sleeps as long as the loader needs for a batch at full speed on both cores.
Stall: 1 - (step time on one cached batch) / (step time on loaded batches). It is the cost of handing over batches;
`waits.py` computes the step time below which a faster device waits.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import common
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedConfig, PreTrainedModel

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.sampler import EpochSampler
from simple_multimodal.media import get_video_backend, index_video, sample_positions
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor
from simple_multimodal.tasks.retrieval.task import PreTraining
from simple_multimodal.training.arguments import MultimodalTrainingArguments
from simple_multimodal.training.trainer import MultimodalTrainer

BATCH = 12
WORKERS = 2


class Sleeper(PreTrainedModel):
    """A model whose step takes time but no CPU."""

    config_class = PreTrainedConfig
    seconds = 0.0

    def __init__(self):
        super().__init__(PreTrainedConfig())
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.post_init()

    def count_items(self, batch: dict) -> dict[str, torch.Tensor]:
        return {"rows": torch.tensor(float(len(batch["row_ids"])))}

    def forward(self, num_items=None, **batch):
        time.sleep(self.seconds)
        from simple_multimodal.models.outputs import MultimodalOutput

        loss = self.weight.sum()
        return MultimodalOutput(loss=loss, losses={"rows": loss.detach()}, metrics={})


class Cached(IterableDataset):
    """Yields one batch again and again."""

    def __init__(self, batch: dict):
        self.batch = batch

    def __iter__(self):
        while True:
            yield self.batch


def repeated(manifest: str, times: int, folder: str, root: str | None) -> RowDataset:
    """Return a data set that holds every row several times, so that few epochs end while a loader is measured."""
    rows = [json.loads(line) for line in Path(manifest).read_text().splitlines()]
    path = Path(folder, f"{len(list(Path(folder).iterdir()))}.jsonl")
    copies = [{**row, "id": f"{row['id']}-{copy}"} for copy in range(times) for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in copies))
    return RowDataset.from_manifest(path, roots={"video": root or Path(manifest).parent}, modalities=())


def processor() -> MultimodalProcessor:
    return MultimodalProcessor(AudioFeatureExtractor(max_windows=1), VideoClipProcessor())


def collator() -> MultimodalCollator:
    return MultimodalCollator(processor(), training=True, num_threads=1)


def loader_speed(dataset: RowDataset) -> float:
    """Return the seconds per batch when nothing else runs, without the first batches, during which workers start."""
    loader = DataLoader(
        dataset, BATCH, sampler=EpochSampler(dataset, seed=0), collate_fn=collator(), num_workers=WORKERS,
        prefetch_factor=4, drop_last=True,
    )  # fmt: skip
    marks = [time.perf_counter() for _ in loader]
    return (marks[-1] - marks[WORKERS]) / (len(marks) - 1 - WORKERS)


class Marks:
    """Records the end of each step."""

    def __init__(self):
        from transformers import TrainerCallback

        marks = self.times = []

        class Callback(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                marks.append(time.perf_counter())

        self.callback = Callback()

    def step_seconds(self) -> float:
        """Return the mean time of a step, without the first ones, during which workers start."""
        later = self.times[len(self.times) // 4 :]
        return (later[-1] - later[0]) / (len(later) - 1)


def trainer_step(dataset: RowDataset, seconds: float, steps: int, batch: dict | None) -> float:
    """Return the seconds per step of the Trainer, on loaded batches or on a cached one."""
    marks = Marks()
    model = Sleeper()
    model.seconds = seconds
    with tempfile.TemporaryDirectory() as folder:
        args = MultimodalTrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=BATCH, dataloader_num_workers=WORKERS, use_cpu=True,
            dataloader_prefetch_factor=4, disable_tqdm=True, save_strategy="no", logging_strategy="no", do_eval=False,
            dataloader_drop_last=True,
        )  # fmt: skip
        trainer = MultimodalTrainer(
            model, args, processor=collator().processor, train_dataset=dataset, task=PreTraining(),
            callbacks=[marks.callback],
        )  # fmt: skip
        if batch is not None:
            trainer.get_train_dataloader = lambda: DataLoader(Cached(batch), batch_size=None)
        trainer.train()
    return marks.step_seconds()


def bare_step(seconds: float, steps: int, batch: dict) -> float:
    """Return the seconds per step of a bare loop on the cached batch."""
    model = Sleeper()
    model.seconds = seconds
    optimizer = torch.optim.AdamW(model.parameters())
    start = time.perf_counter()
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("manifest")
    parser.add_argument("packed")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    originals = RowDataset.from_manifest(options.manifest, roots={"video": options.folder}, modalities=())
    packed = RowDataset.from_manifest(options.packed, modalities=())
    backend = get_video_backend("pyav")

    psnr = []
    frames_cpu, batch_cpu = [0.0, 0.0], [0.0, 0.0]  # of originals and packed, in one thread
    sequential = MultimodalCollator(processor(), parallel=False)
    for number in range(len(packed)):
        pair = []
        for place, table in enumerate((originals, packed)):
            path = table[number]["video"]
            index = index_video(path)
            read = lambda path=path, index=index: backend.frames(path, sample_positions(index, 16), index, (224, 224))  # noqa: E731
            frames, cpu, _ = common.measured(read)
            frames_cpu[place] += cpu
            batch_cpu[place] += common.measured(lambda table=table, number=number: sequential([table[number]]))[1]
            pair.append(frames.astype(float))
        psnr.append(10 * np.log10(255**2 / ((pair[0] - pair[1]) ** 2).mean()))
    print(
        f"one thread, CPU: frames alone {frames_cpu[0] / frames_cpu[1]:.2f} times, "
        f"full batches {batch_cpu[0] / batch_cpu[1]:.2f} times"
    )
    sizes = [
        sum(os.path.getsize(path) for path in {table[n]["video"] for n in range(len(table))})
        for table in (originals, packed)
    ]
    folder = tempfile.mkdtemp()
    originals = repeated(options.manifest, 12, folder, options.folder)
    packed = repeated(options.packed, 40, folder, None)
    rates = {"originals": [], "packed": []}
    for repeat in range(options.repeats):
        order = [("originals", originals), ("packed", packed)]
        for name, dataset in order if repeat % 2 == 0 else order[::-1]:
            rates[name].append(BATCH / loader_speed(dataset))
    speed = {name: statistics.median(values) for name, values in rates.items()}
    print(f"full batches (16 frames at 224, log-mel): originals {speed['originals']:.1f} clips/s, packed "
          f"{speed['packed']:.1f}: {speed['packed'] / speed['originals']:.2f} times; bytes "
          f"{sizes[1] / sizes[0]:.2f} times; PSNR {statistics.median(psnr):.1f} dB (median)")  # fmt: skip
    results = {
        "clips_per_second": speed,
        "raw": rates,
        "bytes": sizes,
        "psnr": psnr,
        "frames_cpu": frames_cpu,
        "batch_cpu": batch_cpu,
    }
    for name, dataset, steps in (("packed", packed, 110), ("originals", originals, 34)):
        seconds = BATCH / speed[name]
        batch = collator()([dataset[(0, number)] for number in range(BATCH)])
        bare = bare_step(seconds, 20, batch)
        cached = trainer_step(dataset, seconds, 20, batch)
        real = trainer_step(dataset, seconds, steps, None)
        stall = 1 - cached / real
        results[name] = {"step_seconds": seconds, "bare": bare, "cached": cached, "real": real, "stall": stall}
        print(f"{name}: step {1000 * seconds:.0f} ms; bare loop {1000 * bare:.1f}, Trainer on a cached batch "
              f"{1000 * cached:.1f}, on loaded batches {1000 * real:.1f} ms; stall {stall:.3f}; Trainer over bare "
              f"{cached / bare:.3f}")  # fmt: skip
    common.save("packed", results)


if __name__ == "__main__":
    main()

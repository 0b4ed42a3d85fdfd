"""Batches of 8: 16 frames, 10 s of audio as log-mel, and text, compared with Hugging Face's processors.

python benchmarks/batches.py CLIPS_FOLDER TRAIN_MANIFEST [--repeats 5]
"""

import argparse
import statistics
import time

import common
import numpy as np
import torch
from torchcodec.decoders import AudioDecoder
from transformers import ASTFeatureExtractor, VideoMAEImageProcessor
from transformers.video_utils import load_video

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import RowDataset, row_captions
from simple_multimodal.data.tokenization import train_tokenizer
from simple_multimodal.media import index_video, sample_positions
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, VideoClipProcessor

BATCH = 8
WINDOW = 992  # log-mel frames


def plain(rows: list, tokenizer, video_processor, audio_processor) -> dict[str, torch.Tensor]:
    """Read each sample with Hugging Face's loaders and processors, one after the other."""
    videos, log_mels = [], []
    for row in rows:
        positions = sample_positions(index_video(row["video"]), 16)
        frames, _ = load_video(row["video"], backend="pyav", sample_indices_fn=lambda metadata, p=positions: p)
        videos.append(video_processor(list(frames), return_tensors="pt")["pixel_values"])
        samples = AudioDecoder(row["video"], sample_rate=16000, num_channels=1).get_all_samples().data[0]
        features = audio_processor(samples.numpy(), sampling_rate=16000, return_tensors="pt")["input_values"]
        log_mels.append(features)
    texts = tokenizer([row_captions(row)[0] for row in rows], padding=True, return_tensors="pt")
    return {"pixels": torch.cat(videos), "log_mel": torch.cat(log_mels), **texts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("manifest")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    dataset = RowDataset.from_manifest(options.manifest, roots={"video": options.folder}, modalities=())
    tokenizer = train_tokenizer([c for n in range(len(dataset)) for c in row_captions(dataset[n])], vocab_size=500)
    audio = AudioFeatureExtractor(num_frames=WINDOW, max_windows=1)
    video_processor = VideoMAEImageProcessor(do_rescale=False, do_normalize=False)
    audio_processor = ASTFeatureExtractor(num_mel_bins=128, max_length=WINDOW)
    rows = []
    for number in range(len(dataset)):  # clips for which Hugging Face's loaders deliver audio and all frames
        row = dataset[number]
        sample, _, _ = common.measured(lambda row=row: plain([row], tokenizer, video_processor, audio_processor))
        if sample is not None and sample["pixels"].shape[1] == 16:
            rows.append(row)
    print(f"{len(rows)} of {len(dataset)} clips can be read with Hugging Face's loaders")
    rows = rows[: len(rows) // BATCH * BATCH]
    groups = [rows[begin : begin + BATCH] for begin in range(0, len(rows), BATCH)]

    def collator(kernel: str, threads: int | None) -> MultimodalCollator:
        video = VideoClipProcessor(num_frames=16, size=224, resize_kernel=kernel)
        processor = MultimodalProcessor(audio, video, tokenizer)
        return MultimodalCollator(processor, parallel=threads is not None, num_threads=threads)

    ways = {
        "ours, 2 threads": collator("fast", 2),
        "ours, one after the other": collator("fast", None),
        "ours, antialias, 2 threads": collator("antialias", 2),
        "hugging face": lambda group: plain(group, tokenizer, video_processor, audio_processor),
    }
    for way in ways.values():  # start threads, build tables and indices
        way(groups[0])

    # The check: the same tensors.
    differences = []
    for group in groups:
        theirs = ways["hugging face"](group)
        for name in ("ours, 2 threads", "ours, antialias, 2 threads"):
            batch = ways[name](group)
            assert torch.equal(batch["input_ids"], theirs["input_ids"])
            pixels = batch["pixel_values_videos"].float() - theirs["pixels"].float()
            mel = batch["audio_values"][:, 0].transpose(1, 2) - theirs["log_mel"]
            real = batch["audio_attention_mask"]
            psnr = 10 * np.log10(255**2 / max(float((pixels**2).mean()), 1e-9))
            differences.append((name, psnr, float(mel[real].abs().mean())))
    gate = {
        name: {
            "psnr_median": statistics.median(p for n, p, _ in differences if n == name),
            "log_mel_mean_difference": statistics.median(m for n, _, m in differences if n == name),
        }
        for name in ("ours, 2 threads", "ours, antialias, 2 threads")
    }

    walls: dict[str, list[float]] = {name: [] for name in ways}
    cpus: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(options.repeats):
        for name in list(ways) if repeat % 2 == 0 else list(ways)[::-1]:
            wall, cpu = time.perf_counter(), time.process_time()
            for group in groups:
                ways[name](group)
            walls[name].append(time.perf_counter() - wall)
            cpus[name].append(time.process_time() - cpu)
    # The lower bound: the work is divided over all cores, but no batch is faster than its longest sample.
    sequential = collator("fast", None)
    bound = 0.0
    for group in groups:
        each = []
        for row in group:
            times = [common.measured(lambda row=row: sequential([row]))[1] for _ in range(3)]
            each.append(statistics.median(times))
        bound += max(max(each), sum(each) / 2)
    median = {name: statistics.median(values) for name, values in walls.items()}
    ours = median["ours, 2 threads"]
    print(f"{len(groups)} batches of {BATCH}; wall seconds for all")
    for name, value in median.items():
        print(f"  {name:28s}{value:7.2f} s, CPU {statistics.median(cpus[name]):6.2f} s, {value / ours:.2f} times ours")
    print(f"  bound T*                    {bound:7.2f} s: ours takes {ours / bound:.3f} times as long")
    print(f"  check: {gate}")
    common.save("batches", {"wall": walls, "cpu": cpus, "bound": bound, "ours_over_bound": ours / bound,
                            "plain_over_ours": median["hugging face"] / ours, "gate": gate})  # fmt: skip


if __name__ == "__main__":
    main()

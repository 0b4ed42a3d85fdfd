"""Sound to log-mel: whole sound tracks, and the same as AAC, MP3, FLAC and WAV, beside torchcodec and Hugging Face.

python benchmarks/sound.py CLIPS_FOLDER [--repeats 5]
"""

import argparse
import statistics
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import common
import numpy as np
import torch
from torchcodec.decoders import AudioDecoder
from transformers import ASTFeatureExtractor

from simple_multimodal.media.audio import read_audio
from simple_multimodal.media.errors import MediaError
from simple_multimodal.processing import AudioFeatureExtractor

RATE = 16000
WINDOW = 992  # log-mel frames, 10 s
KINDS = {"aac": ("m4a", "aac"), "mp3": ("mp3", "mp3"), "flac": ("flac", "flac"), "wav": ("wav", "pcm_s16le")}


def write(path: Path, codec: str, waveform: np.ndarray) -> None:
    """A mono file at 44.1 kHz."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=44100, layout="mono")
        resampler = av.AudioResampler(stream.format.name, "mono", 44100, frame_size=stream.frame_size or 1024)
        frame = av.AudioFrame.from_ndarray(waveform[None], "fltp", "mono")
        frame.sample_rate, frame.time_base, frame.pts = 44100, Fraction(1, 44100), 0
        for part in (frame, None):
            for piece in resampler.resample(part):
                output.mux(stream.encode(piece))
        output.mux(stream.encode(None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    extractor = AudioFeatureExtractor(num_frames=WINDOW, max_windows=1)
    theirs = ASTFeatureExtractor(num_mel_bins=128, max_length=WINDOW)

    def decoded(path: str) -> np.ndarray:
        return AudioDecoder(path, sample_rate=RATE, num_channels=1).get_all_samples().data[0].numpy()

    readers = {
        "ours": lambda path: extractor.extract(read_audio(path, RATE)).values,
        "torchcodec, our log-mel": lambda path: extractor.extract(decoded(path)).values,
        "torchcodec, Hugging Face's log-mel": lambda path: theirs(
            decoded(path), sampling_rate=RATE, return_tensors="pt"
        )["input_values"],
    }
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        paths: dict[str, list[str]] = {kind: [] for kind in KINDS}
        paths["sound tracks of the clips"] = []
        seconds = 0.0
        for clip in sorted((options.folder / "videos").iterdir()):
            try:
                waveform = read_audio(clip, 44100)
                AudioDecoder(str(clip), sample_rate=RATE)
            except (MediaError, RuntimeError, ValueError):  # no sound, or none that the peer reads
                continue
            seconds += len(waveform) / 44100
            paths["sound tracks of the clips"].append(str(clip))
            for kind, (suffix, codec) in KINDS.items():
                paths[kind].append(str(Path(folder, f"{clip.stem}.{suffix}")))
                write(Path(paths[kind][-1]), codec, waveform)
        for kind, files in paths.items():
            difference = []  # the gate: the same samples, but for the resamplers
            for path in files:
                ours, peers = torch.from_numpy(read_audio(path, RATE)), torch.from_numpy(decoded(path))
                length = min(len(ours), len(peers))
                difference.append(float((ours[:length] - peers[:length]).abs().mean()))
            cpu = common.interleaved(files, readers, options.repeats)
            totals = {name: common.total(values, files) for name, values in cpu.items()}
            results[kind] = {"cpu": totals, "mean_difference": statistics.median(difference)}
            print(f"{kind}: {len(files)} files, {seconds:.0f} s, {seconds / totals['ours']:.0f} times real time, "
                  f"mean difference of the samples {statistics.median(difference):.1e}")  # fmt: skip
            for name, value in totals.items():
                print(f"  {name:36s}{1000 * value:8.0f} ms CPU, {value / totals['ours']:.2f} times ours")
    common.save("sound", results)


if __name__ == "__main__":
    main()

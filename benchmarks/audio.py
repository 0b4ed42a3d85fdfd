"""Audio to log-mel, compared with torchcodec and Hugging Face: whole tracks, and the same as AAC, MP3, FLAC and WAV.

    python benchmarks/audio.py CLIPS_FOLDER [--repeats 5]

With `--slices`, read 10 s of files of 101 minutes at minutes 3, 10, 60 and 100: their cost, and their difference from
decoding everything before them. The files (0.7 GB) are made in the given folder, unless they exist.

    python benchmarks/audio.py LONG_FOLDER --slices [--repeats 5]
"""

import argparse
import statistics
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import common
import numpy as np
import torch

from simple_multimodal.media import audio, read_audio
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.index_cache import index_cache
from simple_multimodal.processing import AudioFeatureExtractor

RATE = 16000
WINDOW = 992  # log-mel frames, 10 s
KINDS = {"aac": ("m4a", "aac"), "mp3": ("mp3", "mp3"), "flac": ("flac", "flac"), "wav": ("wav", "pcm_s16le")}


def write(path: Path, codec: str, waveform: np.ndarray) -> None:
    """Write a mono file at 44.1 kHz."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=44100, layout="mono")
        resampler = av.AudioResampler(stream.format.name, "mono", 44100, frame_size=stream.frame_size or 1024)
        frame = av.AudioFrame.from_ndarray(waveform[None], "fltp", "mono")
        frame.sample_rate, frame.time_base, frame.pts = 44100, Fraction(1, 44100), 0
        for part in (frame, None):
            for piece in resampler.resample(part):
                output.mux(stream.encode(piece))
        output.mux(stream.encode(None))


MINUTES = (3, 10, 60, 100)
SLICE_SECONDS = 10
LONG_RATE = 24000  # supported by all of the codecs
LONG_KINDS = {  # file, codec and codec options
    "mp3": ("long.mp3", "libmp3lame", {}),
    "aac without noise substitution": ("long.m4a", "aac", {"aac_pns": "0"}),
    "the same in ts": ("long.ts", "aac", {"aac_pns": "0"}),
    "aac": ("long_pns.m4a", "aac", {}),
    "opus": ("long.opus", "libopus", {}),
    "flac": ("long.flac", "flac", {}),
    "wav": ("long.wav", "pcm_s16le", {}),
}


def write_long(path: Path, codec: str, codec_options: dict[str, str]) -> None:
    """Write 101 minutes of tones and bursts of noise, mono."""
    temporary = path.with_name(f"incomplete_{path.name}")
    times = np.arange(60 * LONG_RATE) / LONG_RATE
    generator = np.random.default_rng(0)
    with av.open(str(temporary), "w") as output:
        stream = output.add_stream(codec, rate=LONG_RATE, layout="mono", options=codec_options)
        resampler = av.AudioResampler(stream.format.name, "mono", LONG_RATE, frame_size=stream.frame_size or 1024)
        for minute in range(max(MINUTES) + 1):
            tone = np.sin(
                2 * np.pi * generator.uniform(200, 900) * times + 20 * np.sin(generator.uniform(1, 9) * times)
            )
            noise = generator.uniform(-0.2, 0.2, len(times)) * (times % generator.uniform(1, 3) > 0.8)
            frame = av.AudioFrame.from_ndarray((0.4 * tone + noise).astype(np.float32)[None], "fltp", "mono")
            frame.sample_rate, frame.time_base, frame.pts = LONG_RATE, Fraction(1, LONG_RATE), minute * len(times)
            for piece in resampler.resample(frame):
                output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    temporary.rename(path)


def decoded_slices(path: Path) -> dict[int, np.ndarray]:
    """Return the slices as decoded from the start, in one pass."""
    slices = {minute: np.zeros(SLICE_SECONDS * RATE, np.float32) for minute in MINUTES}
    tracks = index_cache.tracks(path)
    for position, piece in audio._resampled(path, tracks, RATE, None, (), 0, None):
        for minute, part in slices.items():
            begin = max(60 * minute * RATE, position)
            end = min((60 * minute + SLICE_SECONDS) * RATE, position + len(piece))
            if begin < end:
                part[begin - 60 * minute * RATE : end - 60 * minute * RATE] = piece[begin - position : end - position]
        if position > (60 * max(MINUTES) + SLICE_SECONDS) * RATE:
            break
    return slices


def measure_slices(folder: Path, repeats: int) -> None:
    """Write, index and read the long files, and print a line for each kind."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    print(
        f"{'':32s}{'index':>9s}" + "".join(f"{f'minute {minute}':>12s}" for minute in MINUTES) + "   100 / 3",
        flush=True,
    )
    for kind, (name, codec, codec_options) in LONG_KINDS.items():
        path = folder / name
        if not path.exists():
            write_long(path, codec, codec_options)

        def read(minute: int, path: Path = path) -> np.ndarray:
            return read_audio(path, RATE, start_seconds=60 * minute, end_seconds=60 * minute + SLICE_SECONDS)

        with tempfile.TemporaryDirectory() as index_dir:
            started = time.process_time()
            read_audio(path, RATE, start_seconds=60 * MINUTES[0], end_seconds=60 * MINUTES[0] + 1, index_dir=index_dir)
            indexing = time.process_time() - started
        cpu = common.interleaved(MINUTES, {"ours": read}, repeats)["ours"]
        milliseconds = {minute: 1000 * statistics.median(cpu[minute]) for minute in MINUTES}
        differences = {}
        for minute, whole in decoded_slices(path).items():
            seeking = read(minute)
            assert np.array_equal(seeking, read(minute))
            differences[minute] = float(np.abs(seeking - whole).max())
        ratio = milliseconds[MINUTES[-1]] / milliseconds[MINUTES[0]]
        results[kind] = {
            "index_seconds": indexing,
            "milliseconds": milliseconds,
            "last_to_first": ratio,
            "largest_difference": differences,
        }
        cells = (
            f"{milliseconds[minute]:7.1f} {'=' if differences[minute] == 0 else f'{differences[minute]:.0e}':>4s}"
            for minute in MINUTES
        )
        print(f"{kind:32s}{indexing:7.1f} s" + "".join(cells) + f"{ratio:10.2f}", flush=True)
        common.save("audio_slices", results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slices", action="store_true", help="read slices of long files instead of whole tracks")
    options = parser.parse_args()
    if options.slices:
        measure_slices(options.folder, options.repeats)
    else:
        measure_whole_tracks(options)


def measure_whole_tracks(options: argparse.Namespace) -> None:
    """Read the audio tracks of the clips with our reader and the compared ones, which have to be installed."""
    from torchcodec.decoders import AudioDecoder
    from transformers import ASTFeatureExtractor

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
        paths["audio tracks of the clips"] = []
        seconds = 0.0
        for clip in sorted((options.folder / "videos").iterdir()):
            try:
                waveform = read_audio(clip, 44100)
                AudioDecoder(str(clip), sample_rate=RATE)
            except (MediaError, RuntimeError, ValueError):  # no audio, or none that torchcodec can read
                continue
            seconds += len(waveform) / 44100
            paths["audio tracks of the clips"].append(str(clip))
            for kind, (suffix, codec) in KINDS.items():
                paths[kind].append(str(Path(folder, f"{clip.stem}.{suffix}")))
                write(Path(paths[kind][-1]), codec, waveform)
        for kind, files in paths.items():
            difference = []  # the check: the same samples, except for the resamplers
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
    common.save("audio", results)


if __name__ == "__main__":
    main()

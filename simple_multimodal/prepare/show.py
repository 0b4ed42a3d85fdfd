"""Draw the model's inputs for a sample as one image: frames, spectrogram, skeleton and text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers.audio_utils import hertz_to_mel

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import Row, clip_file, row_captions
from simple_multimodal.data.skeletons import draw_skeletons
from simple_multimodal.errors import InputError
from simple_multimodal.evaluation.charts import ticks
from simple_multimodal.media.frame_features import read_header
from simple_multimodal.media.index_cache import FrameIndex, index_video
from simple_multimodal.modalities import Modality
from simple_multimodal.processing import AudioFeatureExtractor, MultimodalProcessor, PoseProcessor, VideoClipProcessor
from simple_multimodal.processing.processing_multimodal import PARTS

WIDTH = 1280  # of the image, in pixels
MARGIN = 16
LEFT, RIGHT = 76, 18  # margins of the timeline, for its labels
FRAMES_PER_LINE = 8
STRIP_HEIGHT, SPECTROGRAM_HEIGHT = 64, 220  # of the timeline, in pixels
FREQUENCIES = (100, 250, 500, 1000, 2000, 4000, 8000, 16000)  # labels, in Hz
BACKGROUND, PANEL, INK, SOFT = (255, 255, 255), (236, 238, 241), (30, 30, 30), (100, 105, 112)
COLOURS = np.array([[0, 0, 30], [60, 15, 110], [180, 40, 120], [250, 110, 70], [255, 240, 170]])  # silent to loud


def draw_sample(
    row: Row,
    processor: MultimodalProcessor,
    *,
    is_training: bool = False,
    seed: int = 0,
    num_frames: int | None = None,
    video_size: Sequence[int] | None = None,
    index_dir: str | None = None,
) -> Image.Image:
    """
    Draw a sample as the collator passes it to the model.

    The frames are shown in full with their times, then again at their positions on a time axis, above the spectrogram
    of the audio on the same axis. A pose is drawn as its skeleton at a few moments, as it is in the file.

    Args:
        row (`Row`): A row of a [`RowDataset`]; its epoch determines the random choices of training.
        processor ([`MultimodalProcessor`]): The model's processor, which is not modified; modalities that it lacks are
            not drawn.
        is_training (`bool`, *optional*, defaults to `False`): Whether to choose frames, crops and caption as in
            training.
        seed (`int`, *optional*): Random seed of the run, used only if `is_training`.
        num_frames (`int`, *optional*): Number of frames per clip; by default that of the processor.
        video_size (`Sequence[int]`, *optional*): Height and width of a frame in pixels, or one number for both; by
            default those of the processor.
        index_dir (`str`, *optional*): Folder of stored frame indices.

    Returns:
        `PIL.Image.Image`: The image.

    Raises:
        MediaError: If a file of the row cannot be read.
        ValueError: If `num_frames` or `video_size` is given for a model without video, or is not allowed.
    """
    processor = _with_video(processor, num_frames, video_size)
    batch = MultimodalCollator(processor, training=is_training, seed=seed, index_dir=index_dir)([row])
    has = {modality: bool(batch[f"{modality}_mask"][0]) for modality in processor.modalities}
    has_video, has_audio = has.get("video", False), has.get("audio", False)
    index = index_video(row["video"], index_dir=index_dir) if row["video"] is not None and has_video else None
    parts = [_titles(row, processor, index, is_training=is_training)]
    if has_video:
        parts.append(_frames(batch))
    if has_video or has_audio:
        parts.append(_timeline(batch, row, processor.feature_extractor if has_audio else None, index))
    if has.get("pose"):
        parts += _pose(batch, row, processor.pose_processor)
    missing = [modality for modality in processor.modalities if not has[modality]]
    if missing:
        parts.append(_text(f"This row has no {' and no '.join(missing)}.", fill=SOFT))
    if has.get("text"):
        ids = batch["input_ids"][0][batch["attention_mask"][0] == 1]
        tokens = processor.tokenizer.convert_ids_to_tokens(ids.tolist())
        # The font lacks the marks that tokenizers put at the start of a word.
        parts.append(_text(f"{len(tokens)} tokens: " + " | ".join(re.sub("^[Ġ▁]", "_", token) for token in tokens)))
    whole = stack(parts, gap=MARGIN)
    image = Image.new("RGB", (WIDTH, whole.height + 2 * MARGIN), BACKGROUND)
    image.paste(whole, (MARGIN, MARGIN))
    return image


def with_pose(processor: MultimodalProcessor, row: Row) -> MultimodalProcessor:
    """Return a processor that also reads the pose of a row as it is, or the same one if the row has none."""
    if row["pose"] is None:
        return processor
    part = PoseProcessor(points="all")
    part = PoseProcessor(points="all", num_features=part.count_features(read_header(row["pose"], part.features_rate)))
    return _with_part(processor, "pose", part)


def _with_part(processor: MultimodalProcessor, modality: Modality, part: Any) -> MultimodalProcessor:
    parts = {PARTS[m].name: processor.part(m) for m in processor.modalities} | {PARTS[modality].name: part}
    return MultimodalProcessor(text_padding=processor.text_padding, **parts)


def _with_video(
    processor: MultimodalProcessor, num_frames: int | None, video_size: Sequence[int] | None
) -> MultimodalProcessor:
    """Return a processor with other frame settings, or the same one if none are given."""
    changes: dict[str, Any] = {}
    if num_frames is not None:
        changes["num_frames"] = num_frames
    if video_size is not None:
        if len(video_size) not in (1, 2):
            raise InputError(f"`video_size` is {list(video_size)}; give height and width, or one number for both.")
        changes["size"] = {"height": video_size[0], "width": video_size[-1]}
    if not changes:
        return processor
    video = processor.video_processor
    if video is None:
        raise InputError("`num_frames` and `video_size` need a model that reads video; leave them out.")
    changed = VideoClipProcessor.from_dict(video.to_dict(), **changes)
    return _with_part(processor, "video", changed)


def _titles(row: Row, processor: MultimodalProcessor, index: FrameIndex | None, *, is_training: bool) -> Image.Image:
    """Draw the file with its frame rate and resolution, the model's settings, and the captions."""
    path = clip_file(row)
    facts = [f"row {row['index']}, id {row['id']}" if path is None else Path(path).name]
    if index is not None:
        facts.append(f"{index.width}x{index.height}, {index.num_frames / index.duration_seconds:.4g} frames/s")
        facts.append(f"{index.duration_seconds:.2f} s")
    if row["start_seconds"] is not None or row["end_seconds"] is not None:
        end = "the end" if row["end_seconds"] is None else f"{row['end_seconds']:g} s"
        facts.append(f"segment {row['start_seconds'] or 0:g} s to {end}")
    seen = [f"row {row['index']}, id {row['id']}", f"training, epoch {row['epoch']}" if is_training else "evaluation"]
    video = processor.video_processor
    if video is not None:
        sampling = video.train_frame_sampling if is_training else video.frame_sampling
        seen.append(f"{video.num_frames} frames of {video.width}x{video.height}, {sampling}")
    if row["audio"] not in (None, path):
        seen.append(f"audio from {Path(row['audio']).name}")
    titles = [_text("  ·  ".join(facts), size=22), _text("  ·  ".join(seen), fill=SOFT)]
    return stack([*titles, *(_text(f"“{caption}”", size=18) for caption in row_captions(row))], gap=6)


def stack(parts: Sequence[Image.Image], *, gap: int = 0) -> Image.Image:
    """Put images of one width below each other, `gap` pixels apart."""
    height = sum(part.height for part in parts) + gap * (len(parts) - 1)
    image = Image.new("RGB", (parts[0].width, height), BACKGROUND)
    top = 0
    for part in parts:
        image.paste(part, (0, top))
        top += part.height + gap
    return image


def _text(text: str, *, size: int = 16, fill: tuple[int, int, int] = INK) -> Image.Image:
    font = ImageFont.load_default(size)
    lines, line = [], ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if line and font.getlength(longer) > WIDTH - 2 * MARGIN:
            lines.append(line)
            longer = word
        line = longer
    lines.append(line)
    height = round(1.4 * size)
    part = Image.new("RGB", (WIDTH - 2 * MARGIN, height * len(lines)), BACKGROUND)
    for number, line in enumerate(lines):
        ImageDraw.Draw(part).text((0, height * number), line, fill=fill, font=font)
    return part


def _pose(batch: Mapping[str, torch.Tensor], row: Row, processor: PoseProcessor) -> list[Image.Image]:
    """Draw the skeleton of a row in lines, below what the model gets of it."""
    real = batch["pose_attention_mask"][0]
    seconds = batch["pose_seconds"][0][real]
    said = [
        f"pose from {Path(str(row['pose'])).name}",
        f"{len(seconds)} frames of {processor.num_features} numbers, {float(seconds[0]):.2f} to "
        f"{float(seconds[-1]):.2f} s",
        f"{float((batch['pose_values'][0][real] == 0).float().mean()):.0%} of them 0 (missing or hidden points)",
    ]
    drawn = draw_skeletons(row, num_moments=2 * FRAMES_PER_LINE, person=processor.person)
    if drawn is None:
        return [_text("  ·  ".join(said), fill=SOFT)]
    said.insert(1, f"{drawn.header.content}, {drawn.header.rate:g} frames/s")
    return [_text("  ·  ".join(said), fill=SOFT), _in_lines(drawn.frames, drawn.seconds)]


def _frames(batch: Mapping[str, torch.Tensor]) -> Image.Image:
    """Draw the frames of the first row."""
    frames = batch["pixel_values_videos"][0].permute(0, 2, 3, 1).numpy()  # (frames, height, width, 3)
    return _in_lines(frames, batch["video_seconds"][0].numpy())


def _in_lines(frames: np.ndarray, seconds: np.ndarray) -> Image.Image:
    """Draw frames `(num_frames, height, width, 3)` in lines, each with its number and time."""
    width = (WIDTH - 2 * MARGIN) // FRAMES_PER_LINE
    height = round(width * frames.shape[1] / frames.shape[2])
    lines = -(-len(frames) // FRAMES_PER_LINE)
    part = Image.new("RGB", (WIDTH - 2 * MARGIN, lines * (height + 22)), BACKGROUND)
    font = ImageFont.load_default(13)
    for number, frame in enumerate(frames):
        line, column = divmod(number, FRAMES_PER_LINE)
        left, top = column * width, line * (height + 22)
        part.paste(Image.fromarray(frame).resize((width - 4, height - 4)), (left, top))
        label = f"{number + 1}:  {seconds[number]:.2f} s"
        ImageDraw.Draw(part).text((left, top + height - 2), label, fill=INK, font=font)
    return part


def _timeline(
    batch: Mapping[str, torch.Tensor],
    row: Row,
    extractor: AudioFeatureExtractor | None,
    index: FrameIndex | None,
) -> Image.Image:
    """Draw frames and spectrogram over one axis, in seconds from the start of the segment; skip what is missing."""
    start, ends = row["start_seconds"] or 0.0, []
    if index is not None:
        whole = (
            index.duration_seconds if row["end_seconds"] is None else min(row["end_seconds"], index.duration_seconds)
        )
        ends += [whole - start, float(batch["video_seconds"][0].max())]
    if extractor is not None:
        real = batch["audio_attention_mask"][0]
        ends.append(float(batch["audio_seconds"][0][real].max()) + extractor.hop_seconds)
    end = max(ends)
    plot = WIDTH - 2 * MARGIN - LEFT - RIGHT

    def place(seconds: float) -> int:
        return LEFT + round(seconds / end * (plot - 1))

    strip = 10 if index is None else STRIP_HEIGHT + 6
    bottom = strip + (0 if extractor is None else SPECTROGRAM_HEIGHT)
    part = Image.new("RGB", (WIDTH - 2 * MARGIN, bottom + 42), BACKGROUND)
    draw, font = ImageDraw.Draw(part), ImageFont.load_default(13)
    if extractor is not None:
        part.paste(_audio(batch, extractor, end, plot), (LEFT, strip))
        for height, label in _frequency_labels(extractor):
            draw.line([(LEFT - 5, strip + height), (LEFT - 1, strip + height)], fill=INK)
            draw.text((LEFT - 9, strip + height), label, fill=INK, font=font, anchor="rm")
        draw.text((0, strip), "" if extractor.front_end == "waveform" else "Hz", fill=SOFT, font=font)
    if index is not None:
        draw.text((0, STRIP_HEIGHT // 2), "frames", fill=SOFT, font=font, anchor="lm")
        _paste_strip(part, batch, place)
        for number in range(len(batch["video_seconds"][0])):
            x = place(float(batch["video_seconds"][0, number]))
            draw.line([(x, STRIP_HEIGHT), (x, strip)], fill=INK)
            for y in range(strip, bottom, 8):
                draw.line([(x, y), (x, y + 2)], fill=BACKGROUND)
    draw.line([(LEFT, bottom), (LEFT + plot - 1, bottom)], fill=INK)
    for tick in ticks(0, end):
        draw.line([(place(tick), bottom), (place(tick), bottom + 5)], fill=INK)
        draw.text((place(tick), bottom + 8), f"{tick:g} s", fill=INK, font=font, anchor="ma" if tick else "la")
    if extractor is not None:
        kind = "waveform" if extractor.front_end == "waveform" else f"log-mel, {extractor.num_mel_bins} bins"
        seconds = batch["audio_seconds"][0][real]
        said = f"audio: {kind}, {extractor.sampling_rate:,} Hz, {float(seconds[0]):.2f} to {float(seconds[-1]):.2f} s"
        draw.text(
            (LEFT, bottom + 26), said if index is None else f"{said}; dotted: the frames' times", fill=SOFT, font=font
        )
    return part


def _paste_strip(part: Image.Image, batch: Mapping[str, torch.Tensor], place: Callable[[float], int]) -> None:
    """Put each frame at its time, cropped to half the distance to its neighbours."""
    frames = batch["pixel_values_videos"][0].permute(0, 2, 3, 1).numpy()
    centres = [place(float(seconds)) for seconds in batch["video_seconds"][0]]
    full = max(round(STRIP_HEIGHT * frames.shape[2] / frames.shape[1]), 1)
    for number, frame in enumerate(frames):
        before = (centres[number] - centres[number - 1]) // 2 if number else full
        after = (centres[number + 1] - centres[number]) // 2 if number + 1 < len(frames) else full
        left, right = min(before, full // 2), min(after, full // 2)
        if left + right < 2:  # frames at the same time, or too close to draw
            continue
        image = Image.fromarray(frame).resize((full, STRIP_HEIGHT))
        image = image.crop((full // 2 - left, 0, full // 2 + right - 1, STRIP_HEIGHT))
        part.paste(image, (centres[number] - left, 0))


def _audio(batch: Mapping[str, torch.Tensor], extractor: AudioFeatureExtractor, end: float, width: int) -> Image.Image:
    """Draw the audio of the first row over `[0, end)` seconds: waveform, or log-mel with low bins at the bottom."""
    real = batch["audio_attention_mask"][0].numpy()
    values = batch["audio_values"][0, 0].numpy()[:, real]  # (bins, frames)
    seconds = batch["audio_seconds"][0].numpy()[real]
    times = (np.arange(width) + 0.5) / width * end
    nearest = np.searchsorted((seconds[1:] + seconds[:-1]) / 2, times)
    is_heard = np.abs(seconds[nearest] - times) <= max(
        extractor.hop_seconds, extractor.window_seconds / 2, end / width
    )
    image = np.empty((SPECTROGRAM_HEIGHT, width, 3), dtype=np.uint8)
    if extractor.front_end == "waveform":
        peaks = np.abs(values).max(axis=0)
        heights = (peaks / max(peaks.max(), 1e-6))[nearest] * (SPECTROGRAM_HEIGHT / 2 - 1)
        distance = np.abs(np.arange(SPECTROGRAM_HEIGHT) - SPECTROGRAM_HEIGHT / 2 + 0.5)
        image[:] = np.where((distance[:, None] <= heights + 0.5)[..., None], COLOURS[2], COLOURS[0])
    else:
        low, high = np.percentile(values, [1, 99])
        shades = np.clip((values - low) / max(high - low, 1e-6), 0, 1) * (len(COLOURS) - 1)
        bins = np.arange(SPECTROGRAM_HEIGHT)[::-1] * len(values) // SPECTROGRAM_HEIGHT
        shades = shades[bins][:, nearest]
        image[:] = np.stack([np.interp(shades, range(len(COLOURS)), channel) for channel in COLOURS.T], axis=-1)
    image[:, ~is_heard] = PANEL
    return Image.fromarray(image)


def _frequency_labels(extractor: AudioFeatureExtractor) -> list[tuple[int, str]]:
    """Return pixel rows from the top of the spectrogram and their frequencies; none for a waveform."""
    if extractor.front_end == "waveform":
        return []
    scale = "kaldi" if extractor.front_end == "kaldi" else extractor.mel_scale
    top = extractor.f_max or extractor.sampling_rate / 2
    low, high = (float(hertz_to_mel(frequency, scale)) for frequency in (extractor.f_min, top))
    labels: list[tuple[int, str]] = []
    for frequency in FREQUENCIES:
        if extractor.f_min <= frequency <= top:
            share = (float(hertz_to_mel(frequency, scale)) - low) / (high - low)
            # Filter k of n is centred on the k-th of n + 1 equal steps in mel.
            position = share * (extractor.num_mel_bins + 1) - 0.5
            height = round((1 - position / extractor.num_mel_bins) * (SPECTROGRAM_HEIGHT - 1))
            height = min(max(height, 0), SPECTROGRAM_HEIGHT - 1)
            if not labels or labels[-1][0] - height > 13:  # labels must not overlap
                labels.append((height, f"{frequency:,}"))
    return labels

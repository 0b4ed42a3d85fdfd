"""Draws what the model sees of a sample: frames, log-mel and tokens, as one picture."""

import textwrap

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from simple_multimodal.data.collator import MultimodalCollator
from simple_multimodal.data.rows import Row
from simple_multimodal.processing import MultimodalProcessor

WIDTH = 1280  # of the picture, in pixels
FRAMES_PER_LINE = 8
MARGIN = 12
BACKGROUND, INK = (255, 255, 255), (30, 30, 30)
COLOURS = np.array([[0, 0, 30], [60, 15, 110], [180, 40, 120], [250, 110, 70], [255, 240, 170]])  # silent to loud


def draw_sample(
    row: Row,
    processor: MultimodalProcessor,
    *,
    is_training: bool = False,
    seed: int = 0,
    index_dir: str | None = None,
) -> Image.Image:
    """
    Draws a sample as the collator hands it to the model.

    Args:
        row (`Row`): From [`RowDataset`]; its epoch decides what is drawn in training.
        processor ([`MultimodalProcessor`]): Of the model; what it has not is not drawn.
        is_training (`bool`, *optional*, defaults to `False`): Draw frames, crops and caption as in training.
        seed (`int`, *optional*, defaults to 0): Of the run.
        index_dir (`str`, *optional*): Folder of stored frame indices.

    Returns:
        `PIL.Image.Image`: The picture.

    Raises:
        MediaError: A file of the row cannot be read.
    """
    batch = MultimodalCollator(processor, training=is_training, seed=seed, index_dir=index_dir)([row])
    parts = [_text(f"row {row['index']}, id {row['id']}" + (f", epoch {row['epoch']}" if is_training else ""))]
    if "video" in processor.modalities:
        parts.append(_frames(batch) if batch["video_mask"][0] else _text("no video"))
    if "audio" in processor.modalities:
        parts.append(_log_mel(batch) if batch["audio_mask"][0] else _text("no sound"))
    if "text" in processor.modalities:
        ids = batch["input_ids"][0][batch["attention_mask"][0] == 1]
        tokens = processor.tokenizer.convert_ids_to_tokens(ids.tolist())
        parts.append(
            _text(f"{len(tokens)} tokens: " + " | ".join(tokens)) if batch["text_mask"][0] else _text("no text")
        )
    elif row["captions"]:
        parts.append(_text("captions: " + " / ".join(row["captions"])))
    picture = Image.new("RGB", (WIDTH, sum(part.height + MARGIN for part in parts) + MARGIN), BACKGROUND)
    top = MARGIN
    for part in parts:
        picture.paste(part, (MARGIN, top))
        top += part.height + MARGIN
    return picture


def _text(text: str) -> Image.Image:
    font = ImageFont.load_default(16)
    lines = textwrap.wrap(text, 145) or [""]
    part = Image.new("RGB", (WIDTH - 2 * MARGIN, 22 * len(lines)), BACKGROUND)
    for number, line in enumerate(lines):
        ImageDraw.Draw(part).text((0, 22 * number), line, fill=INK, font=font)
    return part


def _frames(batch: dict[str, torch.Tensor]) -> Image.Image:
    """The frames of the first row, in lines, each with its time."""
    frames = batch["pixel_values_videos"][0].permute(0, 2, 3, 1).numpy()  # (frames, height, width, 3)
    width = (WIDTH - 2 * MARGIN) // FRAMES_PER_LINE
    height = round(width * frames.shape[1] / frames.shape[2])
    lines = -(-len(frames) // FRAMES_PER_LINE)
    part = Image.new("RGB", (WIDTH - 2 * MARGIN, lines * (height + 20)), BACKGROUND)
    font = ImageFont.load_default(13)
    for number, frame in enumerate(frames):
        line, column = divmod(number, FRAMES_PER_LINE)
        place = (column * width, line * (height + 20))
        part.paste(Image.fromarray(frame).resize((width - 4, height - 4)), place)
        seconds = f"{batch['video_seconds'][0, number]:.2f} s"
        ImageDraw.Draw(part).text((place[0], place[1] + height - 2), seconds, fill=INK, font=font)
    return part


def _log_mel(batch: dict[str, torch.Tensor]) -> Image.Image:
    """The log-mel of the first row, low notes at the bottom, padding in white."""
    real = batch["audio_attention_mask"][0].numpy()
    values = batch["audio_values"][0, 0].numpy()[::-1]  # (bins, frames)
    low, high = np.percentile(values[:, real], [1, 99])
    places = np.clip((values - low) / max(high - low, 1e-6), 0, 1) * (len(COLOURS) - 1)
    colours = np.stack([np.interp(places, range(len(COLOURS)), channel) for channel in COLOURS.T], axis=-1)
    colours[:, ~real] = 255
    width = WIDTH - 2 * MARGIN
    part = Image.new("RGB", (width, 220), BACKGROUND)
    part.paste(Image.fromarray(colours.astype(np.uint8)).resize((width, 196)), (0, 0))
    seconds = batch["audio_seconds"][0].numpy()[real]
    said = f"log-mel, {values.shape[0]} bins, {seconds[0]:.2f} to {seconds[-1]:.2f} s"
    ImageDraw.Draw(part).text((0, 200), said, fill=INK, font=ImageFont.load_default(13))
    return part

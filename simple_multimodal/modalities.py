"""The modalities, their one canonical order, and the names of a batch's entries."""

from typing import Literal

Modality = Literal["text", "audio", "video"]

MODALITIES: tuple[Modality, ...] = ("text", "audio", "video")
"""Every concatenation, dictionary and listing of modalities follows this order."""

CLIP_MODALITIES: tuple[Modality, ...] = ("audio", "video")
"""What a clip is made of: everything that is not the text about it."""

INPUT_KEYS: dict[Modality, tuple[str, ...]] = {
    "text": ("input_ids", "attention_mask"),
    "audio": ("audio_values", "audio_attention_mask", "audio_seconds"),
    "video": ("pixel_values_videos", "video_seconds"),
}
"""Batch entries that a modality's encoder reads, in the order of its `forward`."""

AUDIO_WINDOW_KEYS = ("audio_windows", "audio_window_counts")
"""Batch entries that say which windows of `INPUT_KEYS["audio"]` hold audio: row and window of each, `int64` of shape
`(num_windows, 2)`, at least one; and how many each row has, a tuple of `int`, which no device has to be asked for.
"""

TOKEN_KEYS: dict[Modality, tuple[str, str, str]] = {
    modality: (f"{modality}_tokens", f"{modality}_token_mask", f"{modality}_token_seconds")
    for modality in CLIP_MODALITIES
}
"""Batch entries that stand in for those of `INPUT_KEYS` where a frozen tower was run before: what it gave."""

PRESENCE_KEYS: dict[Modality, str] = {modality: f"{modality}_mask" for modality in MODALITIES}
"""Batch entries, `bool` of shape `(batch_size,)`, that say which rows have the modality."""

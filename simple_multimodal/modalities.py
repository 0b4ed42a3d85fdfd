"""Modalities, their canonical order, and the names of their batch entries.

A new modality is a line in each table; `docs/adding_modalities.md` lists everything that it needs.
"""

from collections.abc import KeysView

Modality = str
"""Name of a modality."""

DEFAULT_MODALITIES: tuple[Modality, ...] = ("text", "audio", "video")
"""Modalities that flags and signatures have by default. Every fusion has an embedding for each of them."""

BUILT_IN_MODALITIES: tuple[Modality, ...] = (*DEFAULT_MODALITIES, "pose")
"""Modalities of this package, whose towers have flags."""

INPUT_KEYS: dict[Modality, tuple[str, ...]] = {
    "text": ("input_ids", "attention_mask"),
    "audio": ("audio_values", "audio_attention_mask", "audio_seconds"),
    "video": ("pixel_values_videos", "video_seconds"),
    "pose": ("pose_values", "pose_attention_mask", "pose_seconds"),
}
"""Batch entries that a modality's encoder reads, in the order of its `forward`."""

AUDIO_WINDOW_KEYS = ("audio_windows", "audio_window_counts")
"""Batch entries with the windows of `INPUT_KEYS["audio"]` that hold audio: row and window of each, `int64` of shape
`(num_windows, 2)`, at least one; and the number of windows of each row, a tuple of `int`, which is on the host.
"""

TOKEN_KEYS: dict[Modality, tuple[str, str, str]] = {
    modality: (f"{modality}_tokens", f"{modality}_token_mask", f"{modality}_token_seconds")
    for modality in BUILT_IN_MODALITIES
    if modality != "text"
}
"""Batch entries that replace those of `INPUT_KEYS` if a frozen tower was run before: its outputs."""

PRESENCE_KEYS: dict[Modality, str] = {modality: f"{modality}_mask" for modality in BUILT_IN_MODALITIES}
"""Batch entries, `bool` of shape `(batch_size,)`: whether each row has the modality."""

MODALITIES: KeysView[Modality] = INPUT_KEYS.keys()
"""All modalities. Every concatenation, dictionary and listing of modalities follows this order."""

CLIP_MODALITIES: KeysView[Modality] = TOKEN_KEYS.keys()
"""Modalities of a clip: all except the text about it."""

"""Batches out of clips that were read one by one."""

from collections.abc import Hashable, Sequence
from typing import Any, cast

import torch

from simple_multimodal.data.collator import MultimodalCollator, OnBadSample
from simple_multimodal.data.rows import EMPTY_ROW, Row
from simple_multimodal.modalities import AUDIO_WINDOW_KEYS


def batch_key(batch: dict[str, Any]) -> Hashable:
    """Return a key that is equal for batches that [`concatenate`] takes: the names, dtypes and shapes of the entries,
    apart from the number of rows.
    """
    return tuple(
        (name, value.dtype, tuple(value.shape[1:]))
        for name, value in sorted(batch.items())
        if name not in AUDIO_WINDOW_KEYS
    )


def num_bytes(batch: dict[str, Any]) -> int:
    """Return the memory of a batch's tensors."""
    return sum(value.nbytes for value in batch.values() if isinstance(value, torch.Tensor))


def concatenate(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """
    Concatenate batches of the collator, in their order. The result is what the collator makes of all rows at once.

    Nothing is padded: with padding, the audio of a clip would depend on the clips that happen to be read with it, and
    the model would compute more windows. Texts are tokenized together instead, with [`MultimodalProcessor.tokenize`],
    whose entries replace those of batches without text.

    Args:
        batches (`Sequence[dict]`): At least one batch; all have the same [`batch_key`].

    Returns:
        `dict[str, Any]`: The entries of the batches, concatenated along the first dimension.

    Raises:
        ValueError: If the batches have different keys.
    """
    if len({batch_key(batch) for batch in batches}) != 1:
        raise ValueError("batches can only be concatenated if their entries have the same names, dtypes and shapes")
    names = [name for name in batches[0] if name not in AUDIO_WINDOW_KEYS]
    whole: dict[str, Any] = {name: torch.cat([batch[name] for batch in batches]) for name in names}
    if AUDIO_WINDOW_KEYS[0] in batches[0]:
        whole |= dict(zip(AUDIO_WINDOW_KEYS, _windows(batches), strict=True))
    return whole


def _windows(batches: Sequence[dict[str, Any]]) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Return the values of `AUDIO_WINDOW_KEYS` for all batches, as [`windows_with_audio`] does."""
    windows_key, counts_key = AUDIO_WINDOW_KEYS
    windows: list[torch.Tensor] = []
    counts: list[int] = []
    for batch in batches:
        own = batch[windows_key][: sum(batch[counts_key])]  # not the window that is listed if none holds audio
        windows.append(own + torch.tensor([len(counts), 0]))
        counts += batch[counts_key]
    found = torch.cat(windows)
    return (found if len(found) else found.new_zeros(1, 2)), tuple(counts)


def read_row(name: str | None, batch: dict[str, Any]) -> Row:
    """
    Return a row whose clip was read before, as pipelines take it and [`ReadClips`] collates it.

    Args:
        name (`str`, *optional*): Name of the clip; rows of one name show the same clip. It need not be a file. Without
            one, the row has no clip.
        batch (`dict[str, Any]`): The clip: the collator's batch of one row without text.
    """
    row = {**EMPTY_ROW, "id": "the clip", "video": name, "audio": name, "group": name or ""}
    del row["is_skipped"]
    return cast(Row, {**row, "batch": batch})


class ReadClips(MultimodalCollator):
    """
    Stand-in for the collator of a pipeline, for rows of [`read_row`], whose clips were read before. Only their texts
    are processed.

    Args:
        collator ([`MultimodalCollator`]): Collator of the pipeline.
    """

    opens_files = False

    def __init__(self, collator: MultimodalCollator):
        vars(self).update(vars(collator), parallel=False)

    def __call__(self, rows: Sequence[Row], on_bad_sample: OnBadSample | None = None) -> dict[str, Any]:
        """Return the batch of rows; their clips must have the same [`batch_key`]."""
        batch = concatenate([row["batch"] for row in rows])  # type: ignore[typeddict-item]
        if "text" in self._readers:
            texts = self._start("text", rows)
            texts.wait()
            batch |= texts.collate()
        if self.targets is not None:
            batch |= self.targets(rows, batch, self._generator_of)
        return batch

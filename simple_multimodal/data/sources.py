"""Rows from whatever holds them: a manifest, dictionaries, a pandas table, or a `datasets.Dataset`."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import datasets

from simple_multimodal.data.rows import RowDataset
from simple_multimodal.data.tables import is_table


def holds_rows(source: object) -> bool:
    """Return whether [`open_rows`] opens a source, as opposed to media files and folders of them."""
    if isinstance(source, (str, os.PathLike)):
        return is_table(source)
    if isinstance(source, Sequence):
        return len(source) > 0 and isinstance(source[0], Mapping)
    return isinstance(source, (RowDataset, datasets.Dataset)) or _is_pandas_table(source)


def open_rows(source: Any, *, cache_dir: str | None = None, **settings: Any) -> RowDataset:
    """
    Open rows as a data set.

    Args:
        source: Path of a manifest, a list of dictionaries, a pandas DataFrame, a `datasets.Dataset`, or a
            [`RowDataset`], which is returned unchanged.
        cache_dir (`str`, *optional*): Cache folder for the tables of manifests and the files of a `datasets.Dataset`.
        settings: Arguments of the matching constructor of [`RowDataset`].

    Raises:
        ValueError: If the manifest or a row is invalid.
    """
    if isinstance(source, RowDataset):
        return source
    if isinstance(source, (str, os.PathLike)):
        return RowDataset.from_manifest(source, cache_dir=cache_dir, **settings)
    if isinstance(source, datasets.Dataset):
        return RowDataset.from_dataset(source, cache_dir=cache_dir, **settings)
    if _is_pandas_table(source):
        return RowDataset.from_dataframe(source, **settings)
    return RowDataset(source, **settings)


def _is_pandas_table(source: object) -> bool:
    pandas = sys.modules.get("pandas")  # imported already if this is one of its tables
    return pandas is not None and isinstance(source, pandas.DataFrame)

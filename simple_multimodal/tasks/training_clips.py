"""The clips that a model was trained on, saved beside it, and the check that test rows are not among them."""

import functools
import json
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

from transformers.utils import logging

from simple_multimodal.data.rows import ClipFile, RowDataset
from simple_multimodal.evaluation.protocols import check_overlap
from simple_multimodal.media.errors import MediaError
from simple_multimodal.media.index_cache import content_hash

logger = logging.get_logger(__name__)

CLIPS_FILE = "training_clips.json"


class TrainingClips(NamedTuple):
    """
    Clips that a model was trained on.

    Args:
        clips (`list[ClipFile]`): Clips, sorted and without repeats. Earlier versions saved only names; the path of
            such a clip is `""`.
    """

    clips: list[ClipFile] = []

    @classmethod
    def read(cls, folder: str | os.PathLike[str] | None) -> Self:
        """Read the clips of a saved model; none if its folder has no such file, or is not on this machine."""
        path = Path(folder or "", CLIPS_FILE)
        if folder is None or not path.is_file():
            return cls()
        content = json.loads(path.read_text(encoding="utf-8"))
        names = content["clips"]
        return cls(list(map(ClipFile, names, content.get("files", [""] * len(names)))))

    def with_rows(self, rows: RowDataset | None) -> Self:
        """Return these clips and those of training rows."""
        return self if rows is None else type(self)(sorted({*self.clips, *rows.clip_files()}))

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write `training_clips.json` into the folder of a model."""
        content = {"clips": [clip.name for clip in self.clips], "files": [clip.path for clip in self.clips]}
        Path(folder, CLIPS_FILE).write_text(json.dumps(content, indent=0) + "\n", encoding="utf-8")

    def check(self, test_set: RowDataset, protocol: str) -> None:
        """
        Check that a model may be tested on rows.

        A clip is rejected if its file is that of a training clip, under any name. It is also rejected if it has the
        name of a training clip, unless both files are on this machine, in the same format and with different contents.
        A warning lists such namesakes, and copies under other names.

        Args:
            test_set ([`RowDataset`]): Rows to test on.
            protocol (`str`): Name of their protocol, for the message.

        Raises:
            ValueError: If the model was trained on one of their clips.
        """
        seen, copies, namesakes = self._compare(test_set)
        check_overlap(seen, test_set.clip_names(), protocol)
        if int(os.environ.get("RANK", "0")) == 0:
            _warn(copies, "have the same contents as training clips of other names")
            _warn(namesakes, "have the names of training clips but other contents, and are treated as different clips")

    def warn_about(self, rows: RowDataset) -> None:
        """Warn if rows of no benchmark show clips that a model was trained on."""
        seen, copies, _ = self._compare(rows)
        if (seen or copies) and int(os.environ.get("RANK", "0")) == 0:
            counts = f"{len(seen) + len(copies)} of the {len(rows.clip_names())}"
            logger.warning(
                f"The model was trained on {counts} clips that it is measured on: results say little about others."
            )

    def _compare(self, rows: RowDataset) -> tuple[dict[str, str], list[str], list[str]]:
        """Return the names of the rows' clips that were trained on, with their training files, of copies of training
        clips, and of others that only have the names of training clips."""
        if not self.clips:
            return {}, [], []
        files = _Files(clip.path for clip in self.clips)
        files_of: dict[str, list[str]] = defaultdict(list)
        for clip in self.clips:
            files_of[clip.name].append(clip.path)
        seen: dict[str, str] = {}
        copies, namesakes = [], []
        for name, path in rows.clip_files():
            twins = files.with_contents_of(path)
            own = files_of.get(name, [])
            if files.has(path) or any(twin in own for twin in twins):
                seen[name] = (own or twins or [path])[0]
            elif own and not all(_can_be_compared(path, other) for other in own):
                seen[name] = own[0]
            elif twins:
                copies.append(f"{name} ({twins[0]})")
            elif own:
                namesakes.append(f"{name} ({own[0]})")
        return seen, copies, namesakes


def _can_be_compared(first: str, second: str) -> bool:
    """Return whether two files exist in the same format: a converted clip is the same clip with other contents."""
    suffixes = {os.path.splitext(path)[1].lower() for path in (first, second)}
    return len(suffixes) == 1 and os.path.isfile(first) and os.path.isfile(second)


def _warn(clips: list[str], what: str) -> None:
    if clips:
        logger.warning(f"{len(clips)} test clips {what}: {', '.join(clips[:3])}{', ...' * (len(clips) > 3)}.")


class _Files:
    """Looks up files by identity and contents; files that are not on this machine are known only by their paths."""

    def __init__(self, paths: Iterable[str]):
        self._paths = {path for path in paths if path}
        self._nodes: set[tuple[int, int]] = set()
        self._by_size: dict[int, list[str]] = defaultdict(list)
        self._contents_of = functools.cache(content_hash)  # many test clips may have the size of one training clip
        for path in self._paths:
            try:
                status = os.stat(path)
            except OSError:
                continue
            self._nodes.add((status.st_dev, status.st_ino))
            self._by_size[status.st_size].append(path)

    def has(self, path: str) -> bool:
        """Return whether a file is one of them, under this name or as a hard link."""
        try:
            status = os.stat(path)
        except OSError:
            return path in self._paths
        return path in self._paths or (status.st_dev, status.st_ino) in self._nodes

    def with_contents_of(self, path: str) -> list[str]:
        """Return the files that have the same contents as `path`."""
        try:
            candidates = self._by_size.get(os.stat(path).st_size, [])
            contents = self._contents_of(path) if candidates else None
        except (OSError, MediaError):
            return []
        return sorted(other for other in candidates if self._contents_of(other) == contents)

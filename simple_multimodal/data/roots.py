"""Root folders of the files of a manifest: resolve cells to paths, which leave a root only through allowed links."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from simple_multimodal.data.fields import climbs, spellings
from simple_multimodal.errors import InputError
from simple_multimodal.media.errors import MediaError

_REPOSITORIES = ("datasets--", "models--", "spaces--")  # prefixes of folders in the hub's cache


class Roots:
    """
    The root folders of a manifest's columns.

    A file may be below its own root or another one; if a root is in a snapshot of the hub's cache, also in that
    snapshot or among the blobs of its repository, which a snapshot's files link to.

    Args:
        folders (`Mapping[str, str | Path]`): Root of each column, by name.
        follow_links (`bool`, *optional*, defaults to `False`): Follow links wherever they lead.
        anywhere (`bool`, *optional*, defaults to `False`): Accept absolute paths and links as they are, because the
            calling program has chosen them; relative paths start from the folders.
    """

    def __init__(
        self,
        folders: Mapping[str, str | os.PathLike[str]],
        *,
        follow_links: bool = False,
        anywhere: bool = False,
    ):
        self.given = {column: os.path.abspath(folder) for column, folder in folders.items()}
        self.folders = {column: os.path.realpath(folder) for column, folder in folders.items()}
        self.follow_links = follow_links or anywhere
        self.anywhere = anywhere
        roots = dict.fromkeys(self.folders.values())
        self._allowed = [*roots, *(folder for root in roots for folder in _snapshot_folders(root))]

    def relative(self, cell: str, column: str) -> str:
        """Return a cell's path relative to its root, also if the cell is absolute.

        Raises:
            ValueError: If the path is absolute and not below its root.
        """
        if self.anywhere or not cell.startswith("/"):
            return cell
        for path, root in (
            (cell, self.given[column]),
            (cell, self.folders[column]),
            (os.path.realpath(cell), self.folders[column]),  # a root that is reached through a link
        ):
            if _is_below(path, root) and not climbs(path[len(root) :].strip("/").split("/")):
                return path[len(root) :].strip("/")
        raise InputError(
            f"the path {cell!r} in column {column!r} is absolute and not below {self.given[column]}. Pass a folder "
            f"above it as the root of the column (`{column}_root`)."
        )

    def locate(self, cell: str, column: str) -> str:
        """
        Return the absolute path of a cell's file, which may not exist. A link within the root is resolved; one that
        leads out of it, or any link with `anywhere`, keeps its own name, which may be unlike that of its file.

        Raises:
            ValueError: If the path leads out of the allowed folders.
            MediaError: If the cell cannot be a path.
        """
        for spelling in spellings(cell):
            path = self._locate(spelling, column)
            if os.path.exists(path):
                return path
        return self._locate(cell.strip(), column)

    def links_out(self, cells: Iterable[str], column: str) -> list[str]:
        """
        Return the cells whose files, or the folders of whose files, are links that lead out of the allowed folders.
        Each folder is listed once, and no file is opened.

        Raises:
            ValueError: See [`relative`].
        """
        if self.follow_links:
            return []
        out: list[str] = []
        for folder, own in self._by_folder(cells, column).items():
            if not self.allows(folder):
                out += own
                continue
            links = _links_in(folder)
            out += [cell for cell in own if links and _plain(cell) in links and self._leads_out(cell, column)]
        return out

    def targets(self, cells: Iterable[str], column: str) -> Iterator[tuple[str, str]]:
        """
        Yield each cell with the absolute path of its file, with all links followed. Each folder is listed once; no
        file is opened, or checked for existence.
        """
        for folder, own in self._by_folder(cells, column).items():
            links, target = _links_in(folder), os.path.realpath(folder)
            for cell in own:
                path = os.path.join(target, os.path.basename(cell.strip()))
                if links and _plain(cell) in links:
                    paths = [os.path.join(folder, os.path.basename(spelling)) for spelling in spellings(cell)]
                    path = os.path.realpath(next(filter(os.path.exists, paths), path))
                yield cell, path

    def _by_folder(self, cells: Iterable[str], column: str) -> dict[str, list[str]]:
        """Group cells by the absolute path of their folder."""
        cells_of: dict[str, list[str]] = defaultdict(list)
        for cell in cells:
            cells_of[os.path.dirname(self.relative(cell.strip(), column))].append(cell)
        return {os.path.join(self.folders[column], folder): own for folder, own in cells_of.items()}

    def allows(self, path: str | os.PathLike[str]) -> bool:
        """Return whether a path leads to an allowed folder."""
        target = os.path.realpath(path)
        return self.follow_links or any(_is_below(target, folder) for folder in self._allowed)

    def _leads_out(self, cell: str, column: str) -> bool:
        try:
            self.locate(cell, column)
        except MediaError:
            return False
        except ValueError:
            return True
        return False

    def _locate(self, cell: str, column: str) -> str:
        root = self.folders[column]
        path = os.path.join(root, self.relative(cell, column))
        if self.anywhere:
            return path
        try:
            target = os.path.realpath(path)
        except (OSError, ValueError) as error:
            raise MediaError(f"{cell!r} cannot be resolved: {error}") from error
        if _is_below(target, root):
            return target
        if self.allows(target):
            return path
        folder = target.removesuffix(f"/{cell}")
        remedy = "" if folder == target else f", or pass {folder} as the root of the column (`{column}_root`)"
        raise InputError(
            f"{cell!r} goes through a link that leaves its folder for {target}. Set `follow_links=True` to follow it"
            f"{remedy}."
        )


def _is_below(path: str, folder: str) -> bool:
    """Return whether an absolute path is a folder or below it, judging by the text alone."""
    return path == folder or path.startswith(folder if folder.endswith(os.sep) else folder + os.sep)


def _snapshot_folders(root: str) -> list[str]:
    """Return the snapshot and the blobs of a folder in the hub's cache
    (`datasets--owner--name/snapshots/revision/…`).
    """
    parts = Path(root).parts
    for place, name in enumerate(parts[:-2]):
        if name.startswith(_REPOSITORIES) and parts[place + 1] == "snapshots":
            repository = Path(*parts[: place + 1])
            return [str(repository / "snapshots" / parts[place + 2]), str(repository / "blobs")]
    return []


def _links_in(folder: str) -> set[str]:
    """Return the plain names of the links in a folder; none if it is missing, which reading its files will report."""
    try:
        with os.scandir(folder) as entries:
            return {_plain(entry.name) for entry in entries if entry.is_symlink()}
    except OSError:
        return set()


def _plain(path: str) -> str:
    """Return the form of a file's name that all of its spellings share."""
    return unicodedata.normalize("NFC", path.rpartition("/")[2].strip())

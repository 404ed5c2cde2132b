"""The names of the images or videos below a folder: found by walking it, and kept so that the next start need not."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from torchjepa.data.errors import DataError

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEO_EXTENSIONS = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv"),
    *(".ts", ".webm", ".wmv"),
)
_FORMAT = 1  # of a kept index; another one is not read
_KEPT_FROM = 10_000  # names; fewer are found as fast as an index is read
_TICK = 2 * 10**9  # ns: the coarsest time stamps in use, those of FAT


@dataclass(frozen=True)
class Kind:
    """What is looked for below a folder.

    Args:
        extensions: endings of file names, in small letters.
        frames: endings of the frames of a video that lies in a folder of its own: a folder with two or more of
            them that end in a number, and none of `extensions`, is found under its own name and `/.`.
    """

    extensions: tuple[str, ...]
    frames: tuple[str, ...] = ()


IMAGES = Kind(EXTENSIONS)
VIDEO_FILES = Kind(VIDEO_EXTENSIONS)
VIDEOS = Kind((*VIDEO_EXTENSIONS, ".gif"), tuple(each for each in EXTENSIONS if each != ".gif"))


class Names:
    """File names in one block of bytes.

    A list of a million strings would be copied page by page into every worker, as each look at a string writes
    its reference count.

    Args:
        block: all names, one after the other, as the system spells them.
        ends: where each ends, after a 0, int64 `[n + 1]`.
    """

    def __init__(self, block: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.block, self.ends = block, ends

    @classmethod
    def of(cls, names: Sequence[str]) -> Names:
        """These names."""
        parts = [os.fsencode(name) for name in names]
        ends = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(parts), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return os.fsdecode(self.block[self.ends[index] : self.ends[index + 1]].tobytes())

    def digest(self) -> str:
        """SHA-256 of the names."""
        digest = hashlib.sha256(self.block.data)
        digest.update(self.ends.data)
        return digest.hexdigest()


@dataclass(frozen=True)
class FolderIndex:
    """What lies below a folder.

    Args:
        names: paths below it with forward slashes, sorted.
        tops: name of each top-level folder that holds samples, "" for the top itself, and the index of the first of
            a run of samples below it; in the order of the samples.
    """

    names: Names
    tops: tuple[tuple[str, int], ...]

    def labels(self) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """The classes, sorted, and the class index of each sample, -1 at the top."""
        classes = tuple(sorted({top for top, _ in self.tops} - {""}))
        place = {name: index for index, name in enumerate(classes)}
        lengths = np.diff([*(start for _, start in self.tops), len(self.names)])
        runs = np.asarray([place.get(top, -1) for top, _ in self.tops], dtype=np.int64)
        return classes, np.repeat(runs, lengths)


def index_folder(root: str, kind: Kind = IMAGES) -> FolderIndex:
    """The images (or videos) below a folder, from the kept index where that still holds, else by walking through it.

    An index of 10,000 files or more is kept in `$TORCHJEPA_CACHE/index`, by default `~/.cache/torchjepa/index`
    (`$XDG_CACHE_HOME` in place of `~/.cache` where it is set; an empty `$TORCHJEPA_CACHE` keeps none). It holds
    as long as no folder below `root` has changed by inode, times of change, links or size: adding, removing or
    renaming a file changes its folder. So a start asks for the state of folders, not of files. An index is not
    kept where a change could go unseen: within two seconds of a folder's last change, which the next may share
    its time stamp with, and below links that lead nowhere yet.

    Args:
        root: the folder.
        kind: what is looked for; images by default.

    Raises:
        DataError: a folder cannot be read.
    """
    root = os.path.abspath(root)
    path = _place(root, kind)
    if path is not None and (kept := _read(path, root, kind)) is not None:
        return kept
    walk = _Walk(root, kind)
    walk.run()
    if path is not None and walk.is_certain and walk.num_files >= _KEPT_FROM:
        _keep(path, walk)
    return walk.index


@dataclass
class _Walk:
    root: str
    kind: Kind
    num_files: int = 0
    states: dict[str, list[int]] = field(default_factory=dict)  # of each folder, before it is listed
    is_certain: bool = True  # whether a later change of what is found must show in `states`

    def run(self) -> None:
        start = time.time_ns()
        block, ends, tops = bytearray(), array("q", [0]), [("", 0)]
        # A folder's name ends with "/" here, so that sorting each folder alone sorts all paths.
        pending, seen = [""], set()
        while pending:
            name = pending.pop()
            if not name or name.endswith("/"):
                pending += self._list(name, seen, start)
                continue
            top = name[: max(name.removesuffix("/.").find("/"), 0)]
            if top != tops[-1][0]:
                tops.append((top, len(ends) - 1))
            block += os.fsencode(name)
            ends.append(len(block))
        names = Names(np.frombuffer(block, dtype=np.uint8), np.frombuffer(ends, dtype=np.int64))
        self.index = FolderIndex(names, tuple(tops))

    def _list(self, below: str, seen: set[tuple[int, int]], start: int) -> list[str]:
        folder = os.path.join(self.root, below[:-1]) if below else self.root
        try:
            stat = os.stat(folder)
            self.states[below] = _state(stat)
            self.is_certain &= max(stat.st_mtime_ns, stat.st_ctime_ns) + _TICK < start
            if (stat.st_dev, stat.st_ino) in seen:
                return []
            seen.add((stat.st_dev, stat.st_ino))
            with os.scandir(folder) as entries:
                found = [below + name for entry in entries if (name := self._name(entry))]
        except PermissionError as error:
            raise DataError(f"{folder!r} cannot be read: permission denied.") from error
        if self.kind.frames:
            found = self._join_frames(below, found)
        found.sort(reverse=True)  # taken from the end
        return found

    def _name(self, entry: os.DirEntry[str]) -> str | None:
        if entry.name.startswith("."):
            return None
        if entry.is_dir():
            return entry.name + "/"
        if entry.name.lower().endswith((*self.kind.extensions, *self.kind.frames)):
            self.num_files += 1
            return entry.name
        if entry.is_symlink():  # a folder may yet appear at its end
            self.is_certain = False
        return None

    def _join_frames(self, below: str, found: list[str]) -> list[str]:
        frames = {name for name in found if name.lower().endswith(self.kind.frames)}
        others = [name for name in found if name not in frames]
        numbered = sum(os.path.splitext(name)[0][-1:].isdigit() for name in frames)
        if numbered < 2 or not all(name.endswith("/") for name in others):
            return others
        return [*others, below + "."]


def _state(stat: os.stat_result) -> list[int]:
    # Not the device: its number changes when a disk is mounted again.
    return [stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_nlink, stat.st_size]


def _place(root: str, kind: Kind = IMAGES) -> Path | None:
    base = os.environ.get("TORCHJEPA_CACHE")
    if base == "":
        return None
    if base is None:
        base = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "torchjepa")
    key = os.fsencode(root) + b"".join(os.fsencode("\0" + each) for each in _kind(kind) if kind != IMAGES)
    return Path(base, "index", hashlib.sha256(key).hexdigest()[:32] + ".npz")


def _kind(kind: Kind) -> list[str]:
    return [*kind.extensions, *(f"frames/{each}" for each in kind.frames)]


def _read(path: Path, root: str, kind: Kind) -> FolderIndex | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            if (header["format"], header["root"], header["extensions"]) != (_FORMAT, root, _kind(kind)):
                return None
            if any(
                _state(os.stat(os.path.join(root, name))) != kept for name, kept in header["states"].items()
            ):
                return None
            names = Names(file["names"], file["ends"])  # the archive checks its sums
            if len(names) != header["num_images"] or names.ends[-1] != len(names.block):
                return None
            return FolderIndex(names, tuple((top, start) for top, start in header["tops"]))
    except (
        Exception
    ):  # missing, torn or not ours: whatever is wrong with it, the folder itself is there to be read
        return None


def _keep(path: Path, walk: _Walk) -> None:
    header = {
        "format": _FORMAT,
        "root": walk.root,
        "extensions": _kind(walk.kind),
        "num_images": len(walk.index.names),
        "states": walk.states,
        "tops": walk.index.tops,
    }
    arrays = {
        "header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
        "names": walk.index.names.block,
        "ends": walk.index.names.ends,
    }
    with suppress(OSError):  # no room, no right to write: the next start walks again
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # whole or not at all
            np.savez(written := Path(folder, path.name), **arrays)
            os.replace(written, path)

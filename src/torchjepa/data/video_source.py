"""Videos in files: those below a folder, or the pieces of them that a table names."""

from __future__ import annotations

import os
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from torchjepa.data.clips import USUAL_RATE
from torchjepa.data.errors import DataError, DecodeError
from torchjepa.data.index import VIDEO_EXTENSIONS, VIDEOS, Names, index_folder
from torchjepa.data.source import ChooseTimes, Task
from torchjepa.data.video_cache import VideoCache, keep_video
from torchjepa.data.video_files import OpenVideo, find_frames, open_video
from torchjepa.data.video_table import read_table

FRAME_FOLDER_RATE = USUAL_RATE
CACHE_BYTES = 2**30
_NUM_LOOKED_AT = 4  # videos opened at the start to learn the channels, and whether all would fit into memory
_MAX_KEPT = 100_000  # samples; more videos than these fit into no cache


class _How(TypedDict):
    min_size: int | None
    frame_folder_rate: float


class _VideoFiles:
    # What the two kinds of sets share: files, the piece of each that is a sample, and reading.
    classes: tuple[str, ...]
    labels: NDArray[np.int64]

    def __init__(
        self, root: str, names: Names, min_size: int | None, frame_folder_rate: float, cache_bytes: int
    ) -> None:
        if not 0 < frame_folder_rate < float("inf"):
            raise ValueError(
                f"videos: frame_folder_rate must be above 0, in frames a second, got {frame_folder_rate}."
            )
        self._root, self._names = root, names
        self.min_size, self.frame_folder_rate = min_size, frame_folder_rate
        self.num_channels: int = 3
        self._files: NDArray[np.int64] | None = None  # of each sample, the number of its file in the cache
        self._cache: VideoCache | None = None
        if len(self):
            self._look(cache_bytes)

    def __len__(self) -> int:
        return len(self._names)

    def origin(self, index: int) -> str:
        """The file that the sample is a piece of; samples of one file belong on one side of a split."""
        name = self._names[index].removesuffix("/.")
        return os.path.basename(os.path.abspath(self._root)) if name == "." else name

    def read_clips(self, index: int, choose: ChooseTimes) -> list[NDArray[np.uint8]]:
        """Clips of one video, uint8 `[t, h, w, c]` each; see `VideoSource`."""
        start, end = self._piece(index)
        with self._open(index) as video:
            found = find_frames(video, choose, start=start, end=end)
        if len(sizes := {pixels.shape[:2] for pixels in found.kept}) > 1:
            raise DecodeError(f"its frames change their size ({sorted(sizes)})")
        return [np.stack([found.kept[place] for place in places]) for places in found.places]

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker cannot inherit the shared memory; it reads from the disk.
        return {**self.__dict__, "_cache": None}

    def _open(self, index: int) -> OpenVideo:
        return self._kept(index) or open_video(self._path(index), **self._how)

    def _kept(self, index: int) -> OpenVideo | None:
        if self._cache is None or self._files is None:
            return None
        file = int(self._files[index])
        if (video := self._cache.get(file)) is None and not self._cache.is_refused(file):
            video = keep_video(self._path(index), self._cache.room, **self._how)
            self._cache.put(file, video)
        return video

    def _path(self, index: int) -> str:
        return os.path.join(self._root, self._names[index])

    @property
    def _how(self) -> _How:
        return {"min_size": self.min_size, "frame_folder_rate": self.frame_folder_rate}

    def _piece(self, index: int) -> tuple[float, float | None]:
        return 0.0, None

    def _look(self, cache_bytes: int) -> None:
        channels, sizes = [], []
        for index in np.unique(np.linspace(0, len(self) - 1, _NUM_LOOKED_AT).astype(int)):
            try:
                with self._open(int(index)) as video:
                    channels.append(video.num_channels)
                    frame = next(iter(video.frames_at([0.0]))).pixels
                    sizes.append(video.duration * (video.frame_rate or USUAL_RATE) * frame.nbytes)
            except (DecodeError, StopIteration):  # counted when it is asked for
                continue
        self.num_channels = max(channels, default=3)
        if sizes and len(self) <= _MAX_KEPT:
            names = [self._names[index] for index in range(len(self))]
            files, self._files = np.unique(names, return_inverse=True)
            if len(files) * max(sizes) <= cache_bytes:
                self._cache = VideoCache(len(files), cache_bytes)


class VideoFolderSource(_VideoFiles):
    """The videos below a folder, sorted by path; a top-level folder's name is the label of what it holds.

    A video is a file (see `VIDEO_EXTENSIONS`, and .gif), or a folder of images whose names end in numbers: its
    frames, in the order of the numbers. Hidden files and folders are passed over; links are followed, no folder
    twice. Videos at the top have no label. The names of a large folder are kept for the next start, as for images.

    A sample is read by one opening of its file, on one thread, and of its frames only those that its clips show are
    brought to RGB. A look at some videos sets `num_channels`: 3 if any of them is in colour.

    Args:
        path: the folder.
        min_size: short side in pixels that frames keep where they are reduced while they are decoded (see
            `VideoReader`). With twice the training size no square crop of a quarter of the area or more is enlarged.
            `None`: full size.
        frame_folder_rate: frames a second of videos that are folders of images, which do not say; 25.
        cache_bytes: videos are decoded whole, once, and kept in memory that forked workers share, if a look at some
            of them says that all fit in this many bytes; 1 GiB. 0: never, for a set that is read once.

    Raises:
        DataError: the path does not exist, is not a folder, cannot be read, or holds no videos.
        ValueError: frame_folder_rate is not above 0.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        min_size: int | None = None,
        frame_folder_rate: float = FRAME_FOLDER_RATE,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.path = os.fspath(path)
        _check_folder(self.path)
        index = index_folder(self.path, VIDEOS)
        super().__init__(self.path, index.names, min_size, frame_folder_rate, cache_bytes)
        if not len(self):
            raise DataError(_no_videos(self.path))
        self.classes, self.labels = index.labels()

    @property
    def num_frame_folders(self) -> int:
        """How many of the videos are folders of images, the frames of one video each."""
        last = self._names.block[self._names.ends[1:] - 1]
        return int((last == ord(".")).sum())  # the index writes them with a dot behind; files end otherwise

    def name(self, index: int) -> str:
        """The path below the folder, with forward slashes."""
        return self.origin(index)

    def fingerprint(self) -> dict[str, object]:
        """Folder, number of videos and classes, and a digest of the names."""
        return {
            "kind": "videos",
            "path": os.path.abspath(self.path),
            "num_samples": len(self),
            "num_classes": len(self.classes),
            "min_size": self.min_size,
            "frame_folder_rate": self.frame_folder_rate,
            "names_sha256": self._names.digest(),
        }


class VideoTableSource(_VideoFiles):
    """The pieces of videos that a CSV file names.

    Its first line names the columns: `path`, from the CSV's folder, of a file or a folder of frames; `start` and
    `end`, in seconds, either may be left out or empty; `label`, and any number of columns `label_NAME`, each a task
    of its own (an empty cell has no label). Without such a line there are two columns, path and label, as V-JEPA's
    lists have. Cells are parted by commas, or by spaces or tabs where the first line has none.

    Args:
        path: the CSV file.
        min_size: as for `VideoFolderSource`.
        frame_folder_rate: as for `VideoFolderSource`.
        cache_bytes: as for `VideoFolderSource`.

    Attributes:
        tasks: the label columns by name, `label` for the plain one; `classes` and `labels` are those of `label`, or
            of the first where there is no such column.

    Raises:
        DataError: the file cannot be read, or a line is wrong: says which line and which column.
        ValueError: frame_folder_rate is not above 0.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        min_size: int | None = None,
        frame_folder_rate: float = FRAME_FOLDER_RATE,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.path = os.fspath(path)
        table = self._table = read_table(self.path)
        super().__init__(os.path.dirname(self.path), table.names, min_size, frame_folder_rate, cache_bytes)
        self.tasks: dict[str, Task] = table.tasks
        unlabelled = Task((), np.full(len(self), -1))
        chosen = self.tasks.get("label") or next(iter(self.tasks.values()), unlabelled)
        self.classes, self.labels = chosen.classes, chosen.labels

    def name(self, index: int) -> str:
        """The path as the table has it, with the piece's start and end where it has them."""
        start, end = self._piece(index)
        piece = "" if start == 0 and end is None else f"[{start:g}:{'' if end is None else f'{end:g}'}]"
        return self.origin(index) + piece

    def fingerprint(self) -> dict[str, object]:
        """File, number of samples and classes, and a digest of what it says."""
        return {
            "kind": "video table",
            "path": os.path.abspath(self.path),
            "num_samples": len(self),
            "num_classes": len(self.classes),
            "min_size": self.min_size,
            "frame_folder_rate": self.frame_folder_rate,
            "table_sha256": self._table.digest,
        }

    def _piece(self, index: int) -> tuple[float, float | None]:
        start, end = self._table.pieces[index].tolist()
        return start, None if np.isinf(end) else end


def is_table(data: str | os.PathLike[str]) -> bool:
    """Whether a path is that of a table of videos, by its ending; a folder is none."""
    return not os.path.isdir(data) and os.fspath(data).lower().endswith((".csv", ".tsv", ".txt"))


def open_video_source(
    data: str | os.PathLike[str],
    *,
    min_size: int | None = None,
    frame_folder_rate: float = FRAME_FOLDER_RATE,
    cache_bytes: int = CACHE_BYTES,
) -> VideoFolderSource | VideoTableSource:
    """Open one set of videos, whole: a folder, or a CSV file.

    Args:
        data: the path.
        min_size: short side that frames keep when they are decoded at reduced size (see `VideoFolderSource`).
        frame_folder_rate: frames a second of videos that are folders of images.
        cache_bytes: room for decoded videos where all fit; 0: never, for a set that is read once.

    Raises:
        DataError: a path that cannot be used.
        ValueError: frame_folder_rate is not above 0.
    """
    kind = VideoTableSource if is_table(data) else VideoFolderSource
    return kind(data, min_size=min_size, frame_folder_rate=frame_folder_rate, cache_bytes=cache_bytes)


def _check_folder(path: str) -> None:
    what = "Give a folder of videos or a CSV file of their paths (path, start, end, label)."
    if not os.path.exists(path):
        raise DataError(f"{path!r} does not exist. {what}")
    if not os.path.isdir(path):
        raise DataError(f"{path!r} is neither a folder of videos nor a CSV file. {what}")


def _no_videos(path: str) -> str:
    looked = f"looked for {', '.join(VIDEO_EXTENSIONS)}, .gif and folders of numbered images, at any depth"
    if len(index_folder(path).names):
        return (
            f"{path!r} holds images and no videos ({looked}). For images use a recipe that takes images, such as "
            "vicreg-digits with --data."
        )
    return f"{path!r} holds no videos ({looked})."

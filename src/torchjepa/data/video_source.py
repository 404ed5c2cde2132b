"""A folder of videos at any depth."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from torchjepa.data.errors import DataError, DecodeError
from torchjepa.data.source import ChooseTimes, VideoInfo
from torchjepa.data.video_reader import VideoReader
from torchjepa.data.videos import VIDEO_EXTENSIONS, find_videos


class VideoFolderSource:
    """The videos below a folder, sorted by path; a top-level folder's name is the label of what it holds.

    Args:
        path: the folder.
        min_size: short side in pixels that frames keep where they are reduced while they are decoded; `None`: full
            size.

    Raises:
        DataError: the path is not a folder, or holds no videos.
    """

    def __init__(self, path: str | os.PathLike[str], *, min_size: int | None = None) -> None:
        self.path, self.min_size = os.fspath(path), min_size
        self._names = find_videos(self.path)
        if not self._names:
            raise DataError(f"{self.path!r} holds no videos (looked for {', '.join(VIDEO_EXTENSIONS)}).")
        tops = [name.partition("/")[0] if "/" in name else "" for name in self._names]
        self.classes: tuple[str, ...] = tuple(sorted(set(tops) - {""}))
        place = {name: index for index, name in enumerate(self.classes)}
        self.labels: NDArray[np.int64] = np.asarray([place.get(top, -1) for top in tops], dtype=np.int64)
        self.num_channels = 3

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The path below the folder, with forward slashes."""
        return self._names[index]

    def read_clips(self, index: int, choose: ChooseTimes) -> list[NDArray[np.uint8]]:
        """Clips of one video, uint8 `[t, h, w, c]` each; raises `DecodeError`."""
        with VideoReader(os.path.join(self.path, self._names[index])) as video:
            clips = choose(VideoInfo(video.duration, video.frame_rate))
            wanted = np.unique(np.concatenate(clips))
            frames = [frame.pixels for frame in video.frames_at(wanted.tolist())]
        if not frames:
            raise DecodeError("it is cut off")
        places = [np.searchsorted(wanted, times).clip(max=len(frames) - 1) for times in clips]
        return [np.stack([frames[place] for place in each]) for each in places]

    def fingerprint(self) -> dict[str, object]:
        """Folder, number of videos and classes."""
        return {
            "kind": "videos",
            "path": os.path.abspath(self.path),
            "num_samples": len(self),
            "num_classes": len(self.classes),
            "min_size": self.min_size,
        }

"""What frames are read from: a video file or a folder of images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from torchjepa.data.decode import decode_image
from torchjepa.data.errors import DecodeError
from torchjepa.data.index import VIDEOS
from torchjepa.data.video_reader import Frame, VideoReader


class OpenVideo(Protocol):
    """A video that is open: a context manager."""

    @property
    def duration(self) -> float:
        """Seconds that it lasts."""
        ...

    @property
    def frame_rate(self) -> float | None:
        """Frames a second, on average; `None` where it does not say."""
        ...

    @property
    def num_channels(self) -> int:
        """1 where its pictures are gray, else 3."""
        ...

    def frames_at(self, times: Iterable[float]) -> Iterator[Frame]:
        """The frame on the screen at each time, ascending seconds, until a time lies beyond the end."""
        ...

    def __enter__(self) -> OpenVideo: ...

    def __exit__(self, *error: Any) -> None: ...


class FrameFolder:
    """A folder of images that are the frames of a video, in the order of the numbers that end their names.

    Args:
        path: the folder.
        frame_rate: frames a second.
        min_size: short side that JPEGs keep when they are decoded at reduced size (see `decode_image`).

    Raises:
        DecodeError: it cannot be listed, or holds no images with numbers.
    """

    def __init__(self, path: str, frame_rate: float, *, min_size: int | None = None) -> None:
        self.path, self.frame_rate, self.min_size = path, frame_rate, min_size
        try:
            names = [name for name in os.listdir(path) if name.lower().endswith(VIDEOS.frames)]
        except OSError as error:
            raise DecodeError(f"{path!r} cannot be read: {error.strerror}") from error
        numbered = [
            (int(found[1]), name)
            for name in names
            if name[0] != "." and (found := re.search(r"(\d+)\.\w+$", name))
        ]
        if not numbered:
            raise DecodeError(f"{path!r} holds no images whose names end in numbers")
        self._names = [name for _, name in sorted(numbered)]

    def __enter__(self) -> FrameFolder:
        return self

    def __exit__(self, *error: Any) -> None: ...

    @property
    def duration(self) -> float:
        """Seconds that it lasts."""
        return len(self._names) / self.frame_rate

    @property
    def num_channels(self) -> int:
        """1 where its first picture is gray, else 3."""
        return self._decode(0).shape[2]

    def frames_at(self, times: Iterable[float]) -> Iterator[Frame]:
        """The frame on the screen at each time, until a time lies beyond the end."""
        last, frame = None, None
        for time in times:
            number = int(time * self.frame_rate + 1e-6)  # a time that is a frame's own may be rounded down
            if number >= len(self._names):
                return
            if frame is None or number != last:
                last, frame = number, Frame(number / self.frame_rate, self._decode(number))
            yield frame

    def _decode(self, number: int) -> Any:
        try:
            return decode_image(os.path.join(self.path, self._names[number]), self.min_size)
        except DecodeError as error:
            raise DecodeError(f"{self._names[number]}: {error}") from error


def open_video(path: str, *, min_size: int | None, frame_folder_rate: float) -> OpenVideo:
    """Open a video, on one thread where it is a file.

    Args:
        path: a video file or a folder of frames.
        min_size: short side that frames keep when they are decoded at reduced size.
        frame_folder_rate: frames a second of a folder of frames.

    Raises:
        DecodeError: it cannot be opened.
    """
    if os.path.isdir(path):
        return FrameFolder(path, frame_folder_rate, min_size=min_size)
    return VideoReader(path, min_size=min_size, num_threads=1)

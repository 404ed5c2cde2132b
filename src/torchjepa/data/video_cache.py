"""Small sets of videos, decoded once and kept in memory that forked workers share."""

from __future__ import annotations

import mmap
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchjepa.data.errors import DecodeError
from torchjepa.data.video_files import FrameFolder
from torchjepa.data.video_reader import Frame, VideoReader

_UNSEEN, _WRITING, _KEPT, _REFUSED = range(4)


@dataclass(frozen=True)
class KeptVideo:
    """A video whose frames are all in memory: an `OpenVideo` that shows what the file would.

    Args:
        pixels: every frame, uint8 `[n, h, w, c]`.
        seconds: when each appears, from the start of the video, `[n]`.
        slack: seconds that a time may lie before a frame to be taken for the frame's own.
        end: when the last frame disappears, in seconds.
        duration: seconds that the video lasts, as its file says.
        frame_rate: frames a second; `None` where the file does not say.
    """

    pixels: NDArray[np.uint8]
    seconds: NDArray[np.float64]
    slack: float
    end: float
    duration: float
    frame_rate: float | None

    def __enter__(self) -> KeptVideo:
        return self

    def __exit__(self, *error: Any) -> None: ...

    @property
    def num_channels(self) -> int:
        """Channels of its pictures."""
        return self.pixels.shape[-1]

    def frames_at(self, times: Iterable[float]) -> Iterator[Frame]:
        """The frame on the screen at each time, ascending seconds, until a time lies beyond the end."""
        wanted = np.array(list(times), dtype=np.float64) + self.slack
        places = np.searchsorted(self.seconds, wanted[wanted < self.end], side="right") - 1
        last, frame = None, None
        for place in places.clip(min=0).tolist():
            if frame is None or place != last:
                last, frame = place, Frame(float(self.seconds[place]), self.pixels[place])
            yield frame


def keep_video(
    path: str, max_bytes: int, *, min_size: int | None, frame_folder_rate: float
) -> KeptVideo | None:
    """Decode a whole video.

    Args:
        path: a video file or a folder of frames.
        max_bytes: of its frames; a longer one is not read to its end.
        min_size: short side that frames keep when they are decoded at reduced size.
        frame_folder_rate: frames a second of a folder of frames.

    Returns:
        The video, or `None` if it is too long, damaged anywhere, or changes its size.
    """
    is_folder = os.path.isdir(path)
    try:
        with (
            FrameFolder(path, frame_folder_rate, min_size=min_size)
            if is_folder
            else VideoReader(path, min_size=min_size, num_threads=1)
        ) as video:
            frames, num_bytes = [], 0
            for frame in video.frames():
                frames.append(frame)
                num_bytes += frame.pixels.nbytes
                if num_bytes > max_bytes or frame.pixels.shape != frames[0].pixels.shape:
                    return None
            pixels, seconds = (
                np.stack([frame.pixels for frame in frames]),
                [frame.seconds for frame in frames],
            )
            return KeptVideo(
                pixels, np.array(seconds), video.slack, video.end, video.duration, video.frame_rate
            )
    except DecodeError:  # a clip may lie before the damage: whoever reads it will see
        return None


class VideoCache:
    """Videos that were decoded whole, by number, in anonymous memory: pages are taken when they are first written.

    Args:
        num: how many videos there are.
        num_bytes: room for all; what does not fit is read from its file again.
    """

    def __init__(self, num: int, num_bytes: int) -> None:
        self._memory = np.frombuffer(mmap.mmap(-1, num_bytes), dtype=np.uint8)
        # Of each video: its state, where it lies, the shape of its frames; slack, end, duration and rate.
        self._shapes = _shared(np.dtype(np.int64), num, 6)
        self._times = _shared(np.dtype(np.float64), num, 4)
        self._used = _shared(np.dtype(np.int64), 1)
        self._lock = multiprocessing.Lock()

    @property
    def room(self) -> int:
        """Bytes that are left."""
        return len(self._memory) - int(self._used[0])

    def is_refused(self, index: int) -> bool:
        """Whether a video is known not to be kept."""
        return bool(self._shapes[index, 0] == _REFUSED)

    def get(self, index: int) -> KeptVideo | None:
        """A video that is kept, its frames in place."""
        with self._lock:
            state, offset, *shape = self._shapes[index].tolist()
        if state != _KEPT:
            return None
        num_bytes = int(np.prod(shape))
        seconds = offset + num_bytes + -num_bytes % 8
        slack, end, duration, rate = self._times[index].tolist()
        return KeptVideo(
            self._memory[offset : offset + num_bytes].reshape(shape),
            self._memory[seconds : seconds + 8 * shape[0]].view(np.float64),
            slack,
            end,
            duration,
            None if np.isnan(rate) else rate,
        )

    def put(self, index: int, video: KeptVideo | None) -> None:
        """Keep a video, if there is room; `None`: remember that there is nothing to keep."""
        num_bytes = (
            0 if video is None else video.pixels.nbytes + -video.pixels.nbytes % 8 + video.seconds.nbytes
        )
        with self._lock:
            if self._shapes[index, 0] != _UNSEEN:  # another process was faster
                return
            fits, offset = num_bytes <= self.room, int(self._used[0])
            self._used[0] += num_bytes if fits else 0
            self._shapes[index, 0] = _WRITING if video is not None and fits else _REFUSED
        if video is None or not fits:
            return
        num_pixels = video.pixels.nbytes
        self._memory[offset : offset + num_pixels] = video.pixels.ravel()
        self._memory[offset + num_bytes - video.seconds.nbytes : offset + num_bytes] = video.seconds.view(
            np.uint8
        )
        rate = np.nan if video.frame_rate is None else video.frame_rate
        self._times[index] = video.slack, video.end, video.duration, rate
        # The lock orders what was written before the word that announces it, on processors that reorder writes.
        with self._lock:
            self._shapes[index] = _KEPT, offset, *video.pixels.shape


def _shared(dtype: np.dtype[Any], *shape: int) -> NDArray[Any]:
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(mmap.mmap(-1, num_bytes), dtype=dtype).reshape(shape)

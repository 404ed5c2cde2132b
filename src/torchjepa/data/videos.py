"""Frames of video files at exact times, decoded as they are asked for, by PyAV (`pip install 'torchjepa[video]'`)."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from torchjepa.data.errors import DataError, DecodeError

VIDEO_EXTENSIONS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
# Where no index of keyframes is at hand, seeking is worth a try from so many seconds on, doubled when it gains nothing.
_LEAST_JUMP = 2


class Frame(NamedTuple):
    """A decoded frame.

    Args:
        seconds: when it appears, from the start of the video.
        pixels: uint8 `[h, w, 3]`, upright.
    """

    seconds: float
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Clip:
    """Some frames of a video.

    Args:
        frames: uint8 `[t, h, w, c]`.
        seconds: when each appears, from the start of the video, float64 `[t]`.
    """

    frames: UInt8[Tensor, "t h w c"]
    seconds: Float64[Tensor, " t"]


class VideoReader:
    """One video file, read forwards; a context manager.

    Times are seconds from the start of the video. The frame at time s is the one on the screen then: the last that
    begins at or before s, exact to half a tick of the file's clock. Frames turned by the camera are set upright.

    Args:
        path: the file; its first video stream is read.

    Attributes:
        num_decoded: frames decoded so far.

    Raises:
        DecodeError: no such file, not a video, or no video stream in it.
        ValueError: PyAV is missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._av = _import_av()
        self._container = self._guard(lambda: self._av.open(self.path, metadata_errors="replace"))
        self.num_decoded = 0
        if not self._container.streams.video:
            kinds = ", ".join(sorted({stream.type for stream in self._container.streams})) or "nothing"
            self._container.close()
            raise DecodeError(f"{self.path!r} holds no video, only {kinds}")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self._start = self._stream.start_time or 0
        self._decoder = iter(self._container.decode(self._stream))
        self._shown: Any = None  # the frame on the screen, and the one after it
        self._following: Any = self._next()
        if self._following is None:
            self._container.close()
            raise DecodeError(f"{self.path!r} holds no frame that can be decoded")
        self._least_jump = Fraction(_LEAST_JUMP)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    @property
    def duration(self) -> float:
        """Seconds that the video lasts, as the file says."""
        return float(self._guard(self._duration))

    @property
    def frame_rate(self) -> float | None:
        """Frames a second, on average; `None` where the file does not say."""
        return float(self._stream.average_rate) if self._stream.average_rate else None

    def frames(self) -> Iterator[Frame]:
        """Every frame, in order."""
        while self._following is not None:
            self._advance()
            yield self._shown_frame()

    def frames_at(self, times: Iterable[float | Fraction]) -> Iterator[Frame]:
        """The frame on the screen at each time, until a time lies beyond the end.

        Only frames between the keyframe before a time and that time are decoded, and none of them twice.

        Args:
            times: seconds, ascending.

        Raises:
            DecodeError: the file is damaged.
        """
        last, frame = None, None
        for time in times:
            self._move_to(Fraction(time))
            if self._following is None and Fraction(time) >= self._end_of_shown():
                return
            if frame is None or self._shown is not last:
                last, frame = self._shown, self._shown_frame()
            yield frame

    def _duration(self) -> Fraction:
        if self._stream.duration is not None:
            return self._stream.duration * self._stream.time_base
        # The header's duration, if any, is that of the longest stream; the last packets say that of this one.
        with self._av.open(self.path, metadata_errors="replace") as file:
            stream = file.streams.video[0]
            if file.duration is not None:
                end = self._start + Fraction(file.duration, self._av.time_base) / stream.time_base
                file.seek(int(end), stream=stream, backward=True)
            ends = [p.pts + (p.duration or 0) for p in file.demux(stream) if p.pts is not None]
            return (max(ends) - self._start) * stream.time_base

    def _move_to(self, time: Fraction) -> None:
        # Half a tick late is in time: a file's clock rounds.
        target = self._start + time / self._stream.time_base + Fraction(1, 2)
        if self._jump_pays(target):
            self._jump(target)
        if self._shown is None:
            self._advance()
        while self._following is not None and self._following.pts <= target:
            self._advance()

    def _jump_pays(self, target: Fraction) -> bool:
        if self._following is None or self._following.pts >= target:
            return False
        index: Any = getattr(self._stream, "index_entries", ())  # not in every PyAV
        if (
            len(index) and index[len(index) - 1].timestamp >= target
        ):  # some formats index only what has been read
            place = index.search_timestamp(int(target), backward=True)
            return place >= 0 and index[place].timestamp > self._following.pts
        return (target - self._following.pts) * self._stream.time_base > self._least_jump

    def _jump(self, target: Fraction) -> None:
        # A keyframe is found by when it is decoded, before it is shown: the first may be a step too far.
        before, back = self._following.pts, 0
        while True:
            aim = max(int(target) - back, before)
            self._seek(aim)
            if aim == before or (self._following is not None and self._following.pts <= target):
                break
            back = max(2 * back, int(1 / self._stream.time_base))
        if self._following is not None and self._following.pts <= before:
            self._least_jump *= 2

    def _seek(self, aim: int) -> None:
        self._guard(lambda: self._container.seek(aim, stream=self._stream, backward=True))
        self._decoder = iter(self._container.decode(self._stream))
        self._shown, self._following = None, self._next()

    def _advance(self) -> None:
        self._shown, self._following = self._following, self._next()

    def _next(self) -> Any:
        frame = self._guard(lambda: next(self._decoder, None))
        while frame is not None and frame.pts is None:
            frame = self._guard(lambda: next(self._decoder, None))
        self.num_decoded += frame is not None
        return frame

    def _shown_frame(self) -> Frame:
        pixels = self._guard(lambda: self._shown.to_ndarray(format="rgb24"))
        turns = round(self._shown.rotation / 90)
        pixels = np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
        return Frame(float(self._seconds(self._shown.pts)), pixels)

    def _seconds(self, pts: int) -> Fraction:
        return (pts - self._start) * self._stream.time_base

    def _end_of_shown(self) -> Fraction:
        length = (self._shown.duration or 0) * self._stream.time_base
        return self._seconds(self._shown.pts) + (length or 1 / (self._stream.average_rate or Fraction(25)))

    def _guard(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # a broken file makes PyAV raise whatever its parser stumbled over
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            raise DecodeError(f"{self.path!r} cannot be decoded as a video: {reason}") from error


Transform = Callable[[NDArray[np.uint8]], Tensor]


def read_clip(path: str | os.PathLike[str], num_frames: int, *, transform: Transform | None = None) -> Clip:
    """A clip of a whole video: frame i of n is the one on the screen at (i + 1/2) / n of its duration.

    Args:
        path: the file.
        num_frames: number of frames n; a video that has fewer shows some of them twice.
        transform: from a frame uint8 `[h, w, 3]` to what is kept of it, uint8 `[h, w, c]`; resizing here keeps a clip
            small whatever the video's size. The frame as it is when `None`.

    Raises:
        DecodeError: the file cannot be decoded, or ends long before it says.
        ValueError: `num_frames` below 1, or PyAV is missing.
    """
    _check_counts(num_frames, 1)
    with VideoReader(path) as video:
        step = Fraction(video.duration) / num_frames
        found = _transformed(
            video.frames_at((i + Fraction(1, 2)) * step for i in range(num_frames)), transform
        )
        frames = list(found)
        # Sound may outlast the picture, and a file's duration is that of both.
        if 2 * len(frames) < num_frames:
            raise DecodeError(
                f"{video.path!r} is cut off: {video.duration:.1f} s are announced, half is missing"
            )
    return _clip(frames, num_frames)


def clip_windows(
    path: str | os.PathLike[str],
    num_frames: int,
    *,
    stride: int | None = None,
    frame_rate: float | None = None,
    transform: Transform | None = None,
) -> Iterator[Clip]:
    """A long video as clips, one after the other, in memory that does not grow with its length.

    With the video's frames at times 0, 1/r, 2/r, ... numbered from 0, window i holds frames i * stride to
    i * stride + n - 1. Frames left over at the end are in one more window, which ends with the video (not where
    windows lie apart). A video shorter than a window gives one, its last frame held.

    Args:
        path: the file.
        num_frames: frames of a window, n.
        stride: frames from the beginning of a window to that of the next; n by default. A larger one leaves frames
            out; where a keyframe allows, they are not decoded.
        frame_rate: r, frames taken from each second; every frame when `None`.
        transform: from a frame uint8 `[h, w, 3]` to what is kept of it, uint8 `[h, w, c]`; called once a frame.

    Raises:
        DecodeError: the file cannot be decoded.
        ValueError: a number that is not positive, or PyAV is missing.
    """
    stride = num_frames if stride is None else stride
    _check_counts(num_frames, stride, frame_rate)
    step, kept = min(stride, num_frames), deque[tuple[float, Tensor]](maxlen=num_frames)
    total, last_end = 0, 0
    with VideoReader(path) as video:
        wanted = _wanted_frames(video, num_frames, stride, frame_rate)
        for total, frame in enumerate(_transformed(wanted, transform), start=1):
            kept.append(frame)
            if total >= num_frames and (total - num_frames) % step == 0:
                last_end = total
                yield _clip(kept, num_frames)
    if last_end < total and (stride <= num_frames or last_end == 0):
        yield _clip(kept, num_frames)


def find_videos(folder: str | os.PathLike[str]) -> list[str]:
    """The videos below a folder: paths below it with forward slashes, sorted; hidden ones are passed over.

    Args:
        folder: the folder.

    Raises:
        DataError: it is not a folder.
    """
    top = Path(folder)
    if not top.is_dir():
        raise DataError(f"{str(folder)!r} is not a folder.")
    below = (path.relative_to(top) for path in top.rglob("*") if path.suffix.lower() in VIDEO_EXTENSIONS)
    return sorted(path.as_posix() for path in below if not any(part[0] == "." for part in path.parts))


def _wanted_frames(
    video: VideoReader, num_frames: int, stride: int, frame_rate: float | None
) -> Iterator[Frame]:
    apart = stride > num_frames
    if frame_rate is None:
        return (frame for i, frame in enumerate(video.frames()) if not apart or i % stride < num_frames)
    numbers = (i for i in count() if not apart or i % stride < num_frames)
    return video.frames_at(i / Fraction(frame_rate) for i in numbers)


def _transformed(frames: Iterable[Frame], transform: Transform | None) -> Iterator[tuple[float, Tensor]]:
    transform = torch.from_numpy if transform is None else transform
    last, kept = None, None
    for seconds, pixels in frames:
        if kept is None or pixels is not last:  # a frame that stays on the screen is transformed once
            last, kept = pixels, transform(pixels)
        yield seconds, kept


def _clip(frames: Iterable[tuple[float, Tensor]], num_frames: int) -> Clip:
    seconds, pixels = zip(*frames)
    if len(sizes := {tuple(image.shape) for image in pixels}) > 1:
        raise DecodeError(f"its frames change their size ({sorted(sizes)}); resize them in transform")
    missing = num_frames - len(seconds)
    held = torch.stack([*pixels, *[pixels[-1]] * missing])
    return Clip(held, torch.tensor([*seconds, *[seconds[-1]] * missing], dtype=torch.float64))


def _check_counts(num_frames: int, stride: int, frame_rate: float | None = None) -> None:
    if num_frames < 1 or stride < 1 or (frame_rate is not None and not 0 < frame_rate < float("inf")):
        raise ValueError(
            f"clips: num_frames and stride must be at least 1 and frame_rate above 0, got num_frames={num_frames}, "
            f"stride={stride}, frame_rate={frame_rate}."
        )


def _import_av() -> Any:
    try:
        import av  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("Reading videos needs PyAV: pip install 'torchjepa[video]'.") from None
    return av

"""Clips of video files: the middle of one, all of it in windows; and the videos below a folder."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import count

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from torchjepa.data.clips import middle_times
from torchjepa.data.errors import DataError, DecodeError
from torchjepa.data.index import VIDEO_FILES, index_folder
from torchjepa.data.video_files import find_frames
from torchjepa.data.video_reader import Frame, VideoReader


@dataclass(frozen=True)
class Clip:
    """Some frames of a video.

    Args:
        frames: uint8 `[t, h, w, c]`.
        seconds: when each appears, from the start of the video, float64 `[t]`.
    """

    frames: UInt8[Tensor, "t h w c"]
    seconds: Float64[Tensor, " t"]


Transform = Callable[[NDArray[np.uint8]], Tensor]


def read_clip(
    path: str | os.PathLike[str],
    num_frames: int,
    *,
    frame_rate: float | None = None,
    transform: Transform | None = None,
) -> Clip:
    """The middle of a video, the clip by which it is judged and encoded where nothing else is asked for.

    n frames at r a second: frame i is the one on the screen at start + (i + 1/2) / r, and as much of the video lies
    before the clip's n / r seconds as behind them. A video shorter than that is shown from its beginning, and its
    last frame held.

    Args:
        path: the file.
        num_frames: number of frames, n.
        frame_rate: r, frames taken from each second; each of the file's own when `None`.
        transform: from a frame uint8 `[h, w, c]` to what is kept of it, uint8 `[h, w, c]`; resizing here keeps a clip
            small whatever the video's size. The frame as it is when `None`.

    Raises:
        DecodeError: the file cannot be decoded, or is cut off.
        ValueError: a number that is not positive, or PyAV is missing.
    """
    _check_counts(num_frames, 1, frame_rate)
    keep = torch.from_numpy if transform is None else transform
    with VideoReader(path) as video:
        found = find_frames(video, lambda info: [middle_times(info, num_frames, frame_rate)], keep=keep)
    return _clip([(found.seconds[place], found.kept[place]) for place in found.places[0]], num_frames)


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
        transform: from a frame uint8 `[h, w, c]` to what is kept of it, uint8 `[h, w, c]`; called once a frame.

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
    if not os.path.isdir(folder):
        raise DataError(f"{os.fspath(folder)!r} is not a folder.")
    names = index_folder(os.fspath(folder), VIDEO_FILES).names
    return [names[index] for index in range(len(names))]


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

"""From whatever a user has (tensors, arrays, pictures, files, folders) to samples that an encoder takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from torchjepa.data import (
    EXTENSIONS,
    VIDEO_EXTENSIONS,
    ArraySource,
    DataError,
    DecodeError,
    ErrorLog,
    ImageSource,
    Preprocessing,
    clip_windows,
    decode_image,
    find_videos,
    read_clip,
)
from torchjepa.data.decode import from_pillow
from torchjepa.data.index import Names, index_folder

# A file; a picture, [h, w] or [h, w, c] or a clip [t, h, w, c]; an input as the network takes it.
Item: TypeAlias = Path | Image.Image | NDArray[Any] | Tensor
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Sample:
    """One input of an encoder.

    Args:
        name: its file, below the folder where one was given, or its number.
        pixels: uint8 `[h, w, c]` or `[t, h, w, c]`, resized but not normalised; floating point: the input itself,
            `[c, ...]`.
        seconds: when the first and the last frame of a clip of a file appear.
    """

    name: str
    pixels: Tensor
    seconds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Reader:
    """How inputs are read: what the network takes, and how long videos are cut.

    Args:
        preprocessing: what pictures go through; `None` where nobody says: then only tensors are read.
        num_axes: of an input behind its channels: 1 for sequences, 2 for images, 3 for clips.
        window: frames of a window; `None` takes every video as one clip.
        stride: frames from the beginning of a window to that of the next; `window` by default.
        errors: where files that cannot be decoded are listed and left out; `None` makes them errors.

    Raises:
        ValueError: a window or stride below 1, a stride alone, or a window of a network that takes no clips.
    """

    preprocessing: Preprocessing | None
    num_axes: int
    window: int | None = None
    stride: int | None = None
    errors: ErrorLog | None = None

    def __post_init__(self) -> None:
        for name, number in (("window", self.window), ("stride", self.stride)):
            if number is not None and number < 1:
                raise ValueError(f"encode: {name} must be at least 1, got {number}.")
        if self.window is None and self.stride is not None:
            raise ValueError(f"encode: stride={self.stride} needs window=..., the frames of a clip.")
        if self.window is not None and not self.takes_clips:
            raise ValueError(
                f"encode: window={self.window} is for networks that take videos; this takes images."
            )

    @property
    def takes_clips(self) -> bool:
        """Whether the network takes clips `[c, t, h, w]`."""
        return self.num_axes == 3

    def samples(self, inputs: Any) -> Iterator[Sample]:
        """The samples of `inputs`, in order, read as they are asked for.

        Args:
            inputs: what `encode` takes.

        Raises:
            ValueError: something is of no kind that can be read, or a file cannot be decoded.
        """
        for number, (name, item) in enumerate(expand(inputs, self.num_axes)):
            with self._listing(number, name):
                yield from self._read(name, item)

    @contextmanager
    def _listing(self, number: int, name: str) -> Iterator[None]:
        try:
            yield
        except DecodeError as error:
            if self.errors is None:
                raise DecodeError(f"{name} cannot be decoded: {error}") from error
            self.errors.add(number, name, str(error))

    def _read(self, name: str, item: Item) -> Iterator[Sample]:
        if isinstance(item, Tensor):
            yield from self._cut(name, item, axis=1) if self.takes_clips else [Sample(name, item)]
        elif isinstance(item, Path) and is_video(item):
            yield from self._read_video(name, item)
        elif isinstance(item, Path):
            yield self._still(name, decode_image(item, 2 * self._known.image_size))
        elif isinstance(item, Image.Image):
            yield self._still(name, from_pillow(item))
        elif item.ndim < 4:
            yield self._still(name, _pictures(item[None])[0])
        else:
            yield from self._cut(name, self._known.resize(_pictures(item)), axis=0)

    def _read_video(self, name: str, path: Path) -> Iterator[Sample]:
        if not self.takes_clips:
            raise ValueError(
                f"encode: {name} is a video, and this network takes images; load a video encoder."
            )
        known = self._known
        if self.window is None:
            num, rate = known.num_frames or 1, known.frame_rate
            clips = iter([read_clip(path, num, frame_rate=rate, transform=self._shrink)])
        else:
            clips = clip_windows(
                path, self.window, stride=self.stride, frame_rate=known.frame_rate, transform=self._shrink
            )
        for clip in clips:
            yield Sample(name, clip.frames, (float(clip.seconds[0]), float(clip.seconds[-1])))

    def _cut(self, name: str, frames: Tensor, axis: int) -> Iterator[Sample]:
        """Windows of frames in memory, as `clip_windows` cuts a file; all of them where there is no window."""
        total, window = frames.shape[axis], self.window
        if window is None or total <= window:
            held = [frames.narrow(axis, total - 1, 1)] * ((window or total) - total)
            yield Sample(name, torch.cat([frames, *held], dim=axis))
            return
        stride = self.stride or window
        starts = list(range(0, total - window + 1, stride))
        if stride <= window and starts[-1] + window < total:
            starts.append(total - window)
        for start in starts:
            yield Sample(name, frames.narrow(axis, start, window))

    def _still(self, name: str, picture: NDArray[np.uint8]) -> Sample:
        image = self._shrink(picture)
        if not self.takes_clips:
            return Sample(name, image)
        return Sample(name, image.expand(self.window or self._known.num_frames or 1, -1, -1, -1))

    def _shrink(self, pixels: NDArray[np.uint8]) -> Tensor:
        return self._known.resize([pixels])[0]

    @property
    def _known(self) -> Preprocessing:
        if self.preprocessing is None:
            raise ValueError(
                "encode: the model does not say what pictures go through before they meet it; pass normalised "
                "tensors, or dataclasses.replace(model, preprocessing=torchjepa.data.Preprocessing(image_size=...))."
            )
        return self.preprocessing


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a video by its ending."""
    return Path(path).suffix.lower() in VIDEO_EXTENSIONS


def expand(inputs: Any, num_axes: int) -> Iterator[tuple[str, Item]]:
    """The single inputs with their names: a folder's files, an array's pictures, a list's items.

    Args:
        inputs: what `encode` takes.
        num_axes: of an input behind its channels.

    Raises:
        ValueError: an input of no known kind, or with a number of axes that fits none.
    """
    if isinstance(inputs, (str, os.PathLike)):
        yield from _expand_path(Path(inputs), num_axes)
    elif isinstance(inputs, (list, tuple)):
        for number, part in enumerate(inputs):
            yield from _expand_part(number, part, num_axes)
    elif isinstance(inputs, Image.Image):
        yield "0", inputs
    elif isinstance(inputs, Tensor) and inputs.is_floating_point():
        yield from _split(inputs, num_axes + 1, (num_axes + 1,))
    elif isinstance(inputs, Tensor):
        yield from expand(
            inputs.movedim(-3, -1).cpu().numpy() if inputs.ndim > 2 else inputs.numpy(), num_axes
        )
    elif isinstance(inputs, np.ndarray):
        yield from _split(inputs, num_axes + 1, (2, 3, num_axes + 1))
    elif isinstance(inputs, ImageSource):
        yield from ((inputs.name(i), inputs.read(i)) for i in range(len(inputs)))
    else:
        raise ValueError(
            f"encode: cannot read a {type(inputs).__name__}; pass a path, a folder, an image of Pillow's, an array, a "
            "tensor, or a list of these."
        )


def file_names(folder: Path, num_axes: int) -> list[str] | Names:
    """What is encoded of a folder: the videos below it for a network that takes clips, or where it has none images.

    Args:
        folder: the folder, or a single file.
        num_axes: of an input behind its channels.

    Raises:
        DataError: it holds neither.
    """
    if folder.is_file():
        return [str(folder)]
    videos = find_videos(folder) if num_axes == 3 else []
    names = videos or index_folder(str(folder)).names
    if not len(names):
        endings = (*VIDEO_EXTENSIONS, *EXTENSIONS) if num_axes == 3 else EXTENSIONS
        raise DataError(
            f"{str(folder)!r} holds nothing to encode (looked for {', '.join(endings)} at any depth)."
        )
    return names


def count(inputs: Any, num_axes: int) -> int | None:
    """How many files a path stands for, or items a list has; `None` of anything else."""
    if isinstance(inputs, (str, os.PathLike)) and Path(inputs).exists():
        return len(file_names(Path(inputs), num_axes))
    return len(inputs) if isinstance(inputs, (list, tuple, ImageSource)) else None


def _expand_part(number: int, part: Any, num_axes: int) -> Iterator[tuple[str, Item]]:
    if isinstance(part, (str, os.PathLike)):
        yield from expand(part, num_axes)
        return
    singles = list(expand(part, num_axes))
    for name, item in singles:
        yield str(number) if len(singles) == 1 else f"{number}/{name}", item


def _expand_path(path: Path, num_axes: int) -> Iterator[tuple[str, Item]]:
    if not path.is_dir():
        yield str(path), path
        return
    names = file_names(path, num_axes)
    yield from ((names[i], path / names[i]) for i in range(len(names)))


def _split(array: Any, num_single: int, single: tuple[int, ...]) -> Iterator[tuple[str, Item]]:
    wrong = isinstance(array, np.ndarray) and array.ndim > 2 and array.shape[-1] not in _CHANNELS
    if array.ndim in single and not wrong:
        yield "0", array
    elif array.ndim == num_single + 1 and not wrong:
        yield from ((str(i), part) for i, part in enumerate(array))
    else:
        raise ValueError(
            f"encode: cannot tell what {tuple(array.shape)} is; expected {num_single} axes for one input of this "
            f"network or {num_single + 1} for several: a tensor of floats with the channels first, normalised; of "
            "whole numbers, pictures with the channels before height and width; an array, pictures with them last "
            f"({', '.join(map(str, _CHANNELS))})."
        )


def _pictures(array: NDArray[Any]) -> list[NDArray[np.uint8]]:
    images = ArraySource(array, layout="nhwc" if array.ndim == 4 else None)
    return [images.read(i) for i in range(len(images))]

"""From decoded images to the views that a learner sees: crops in the workers, colour on the whole batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from torchjepa.data.photometric import Photometric
from torchjepa.data.resizing import resize_boxes, resize_frames
from torchjepa.rng import uniforms

_ATTEMPTS = 10  # as torchvision's RandomResizedCrop
CROP_DRAWS = 2 * _ATTEMPTS + 3
_CACHE_VALUES = 2**18  # 1 MB of floats, half of a usual second-level cache
# Crops on their way to become views: one uint8 tensor `[v, b, h, w, c]` for each size that occurs.
Crops: TypeAlias = tuple[UInt8[Tensor, "v b h w c"], ...]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class SampleKeys:
    """What the augmentation of a batch is a function of, sample by sample.

    Args:
        seed: the seed of the run.
        epochs: the epoch of each sample, int `[b]`.
        ids: index of each sample in its data set, int `[b]`.
    """

    seed: int
    epochs: NDArray[np.int64]
    ids: NDArray[np.int64]

    def draw(self, *purpose: str | int, num: int) -> NDArray[np.float64]:
        """`num` uniform draws in [0, 1) for each sample, float64 `[b, num]`."""
        draws = np.empty((len(self.ids), num))
        for epoch in np.unique(self.epochs):  # a global batch straddles two epochs at most
            rows = self.epochs == epoch
            draws[rows] = uniforms(self.seed, "augment", *purpose, int(epoch), ids=self.ids[rows], num=num)
        return draws


class ViewTransform(Protocol):
    """How a batch of decoded images becomes views."""

    def crop(self, images: Sequence[Any], keys: SampleKeys) -> Crops:
        """The geometric part, in a worker: images uint8 `[h, w, c]` of any sizes to crops."""
        ...

    def finish(self, crops: Crops, keys: SampleKeys) -> tuple[Tensor, ...]:
        """The photometric part, on the device of the crops: normalised views `[b, c, h, w]`, in order."""
        ...


@runtime_checkable
class CroppingTransform(ViewTransform, Protocol):
    """A transform that knows from the size of an image alone how far down its crops reach."""

    def rows_needed(self, sizes: NDArray[np.int64], keys: SampleKeys) -> NDArray[np.int64]:
        """How many rows from the top `crop` will look at, `[b]`, of images of these heights and widths `[b, 2]`."""
        ...


@dataclass(frozen=True)
class Preprocessing:
    """What every image goes through that is not augmented, in training's judging and in deployment alike.

    The largest centred square, in whole pixels, resized to image_size with antialiased bicubic interpolation;
    to RGB or gray (ITU-R 601: 0.299 R + 0.587 G + 0.114 B); then (x / 255 - mean) / std.

    Args:
        image_size: side of the result in pixels.
        num_channels: channels of the result.
        mean: one number for each channel, of values in [0, 1].
        std: one number for each channel, above 0.
        num_frames: frames of a clip, for a network that takes videos; `None` for one that takes images.
        frame_rate: frames of a clip for each second of the video, where the network was trained at one.

    Raises:
        ValueError: a size or a number below 1, mean and std of another length, or a frame rate without frames.
    """

    image_size: int
    num_channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    num_frames: int | None = None
    frame_rate: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))  # JSON gives lists
        object.__setattr__(self, "std", tuple(self.std))
        if self.image_size < 1 or self.num_channels < 1:
            raise ValueError(f"Preprocessing: image_size and num_channels must be at least 1, got {self}.")
        if not len(self.mean) == len(self.std) == self.num_channels or min(self.std) <= 0:
            raise ValueError(
                f"Preprocessing: mean and std need {self.num_channels} numbers (num_channels), std above 0, "
                f"got mean={self.mean}, std={self.std}."
            )
        if (self.num_frames is not None and self.num_frames < 1) or (
            self.frame_rate is not None and (self.num_frames is None or not 0 < self.frame_rate < math.inf)
        ):
            raise ValueError(
                "Preprocessing: num_frames must be at least 1, and frame_rate above 0 and with num_frames, got "
                f"num_frames={self.num_frames}, frame_rate={self.frame_rate}."
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Spatial axes of the encoder's input: `(h, w)`, for clips `(t, h, w)`."""
        side = (self.image_size, self.image_size)
        return side if self.num_frames is None else (self.num_frames, *side)

    def __call__(self, image: NDArray[np.uint8]) -> Float[Tensor, "c h w"]:
        """One image, uint8 `[h, w, c]` of any size, to the encoder's input."""
        return self.normalise(self.resize([image]))[0]

    def resize(self, images: Sequence[NDArray[np.uint8]]) -> UInt8[Tensor, "b h w c"]:
        """The part before normalisation, for images of any sizes."""
        sizes = _sizes(images)
        side = sizes.min(axis=1, keepdims=True)
        start = (sizes - side)[:, ::-1] // 2
        boxes = np.concatenate([start, start + side], axis=1)
        return resize_boxes(images, boxes[None], None, self.image_size, self.num_channels)[0]

    def resize_clip(self, frames: NDArray[np.uint8]) -> UInt8[Tensor, "t h w c"]:
        """The same for the frames of a clip, uint8 `[t, h, w, c]`."""
        height, width = frames.shape[1:3]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = frames[:, top : top + side, left : left + side]
        return resize_frames(square, self.image_size, self.num_channels)

    def normalise(self, pixels: UInt8[Tensor, "b h w c"]) -> Float[Tensor, "b c h w"]:
        """(x / 255 - mean) / std, channels first."""
        planes = pixels.permute(0, 3, 1, 2)
        out = torch.empty(planes.shape, device=pixels.device)
        # A few images at a time go through all four passes while they are in the processor's cache: 0.22 against
        # 0.37 ms for 3 x 224 x 224.
        rows = (
            max(1, _CACHE_VALUES // max(1, planes[0:1].numel())) if pixels.device.type == "cpu" else len(out)
        )
        for part, source in zip(out.split(rows), planes.split(rows), strict=True):
            self.standardise(part.copy_(source).div_(255))
        return out

    def normalise_clips(self, clips: UInt8[Tensor, "b t h w c"]) -> Float[Tensor, "b c t h w"]:
        """(x / 255 - mean) / std, channels first."""
        return self.normalise(clips.flatten(0, 1)).unflatten(0, clips.shape[:2]).transpose(1, 2)

    def standardise(self, values: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """(x - mean) / std for values in [0, 1], which are overwritten."""
        # Plain numbers: a tensor of them would be copied to the device, which waits for it, for every batch.
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            values[:, channel].sub_(mean).div_(std)
        return values


@dataclass(frozen=True)
class MaskedViewTransform:
    """One view for a masked learner: a random resized crop and normalisation, nothing else (I-JEPA).

    Args:
        preprocessing: gives size, channels and normalisation.
        scale: share of the image's area that a crop covers, drawn uniformly; (0.3, 1.0) as in I-JEPA.
        ratio: width / height of a crop, drawn uniformly in the logarithm; 3/4 to 4/3, I-JEPA's.
        flip_probability: chance of a horizontal mirror image; 0 in I-JEPA's configuration.
    """

    preprocessing: Preprocessing
    scale: tuple[float, float] = (0.3, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.0

    def __post_init__(self) -> None:
        check_crop(self.scale, self.ratio, self.flip_probability)

    def crop(self, images: Sequence[NDArray[np.uint8]], keys: SampleKeys) -> Crops:
        """Random resized crops of images uint8 `[h, w, c]`: one tensor `[1, b, h, w, c]`."""
        views = range(1)
        return (
            random_crops(
                images, keys, views, self.scale, self.ratio, self.flip_probability, self.preprocessing
            ),
        )

    def rows_needed(self, sizes: NDArray[np.int64], keys: SampleKeys) -> NDArray[np.int64]:
        """How many rows from the top `crop` will look at, `[b]`, of images of these heights and widths `[b, 2]`."""
        return _view_boxes(sizes, _draw(keys, range(1)), self.scale, self.ratio)[:, :, 3].max(axis=0)

    def finish(self, crops: Crops, keys: SampleKeys) -> tuple[Tensor, ...]:
        """The normalised view, `[b, c, h, w]`."""
        return (self.preprocessing.normalise(crops[0][0]),)


@dataclass(frozen=True)
class TwoViewTransform:
    """Two views of each image, augmented independently, for a joint-embedding learner (BYOL, VICReg, Barlow).

    Args:
        preprocessing: gives size, channels and normalisation.
        scale: share of the image's area that a crop covers, drawn uniformly; (0.08, 1.0) as published.
        ratio: width / height of a crop, drawn uniformly in the logarithm.
        flip_probability: chance of a horizontal mirror image.
        colour: what happens to the colours of the first and of the second view; the defaults are BYOL's pair.
    """

    preprocessing: Preprocessing
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    colour: tuple[Photometric, Photometric] = (
        Photometric(blur_probability=1.0),
        Photometric(blur_probability=0.1, solarise_probability=0.2),
    )

    def __post_init__(self) -> None:
        check_crop(self.scale, self.ratio, self.flip_probability)

    def crop(self, images: Sequence[NDArray[np.uint8]], keys: SampleKeys) -> Crops:
        """Two random resized crops of each image uint8 `[h, w, c]`: one tensor `[2, b, h, w, c]`."""
        views = range(2)
        return (
            random_crops(
                images, keys, views, self.scale, self.ratio, self.flip_probability, self.preprocessing
            ),
        )

    def rows_needed(self, sizes: NDArray[np.int64], keys: SampleKeys) -> NDArray[np.int64]:
        """How many rows from the top `crop` will look at, `[b]`, of images of these heights and widths `[b, 2]`."""
        return _view_boxes(sizes, _draw(keys, range(2)), self.scale, self.ratio)[:, :, 3].max(axis=0)

    def finish(self, crops: Crops, keys: SampleKeys) -> tuple[Tensor, ...]:
        """The two views with their colours changed and normalised, `[b, c, h, w]`."""
        return coloured(crops[0], keys, self.colour, self.preprocessing)


def coloured(
    crops: Iterable[UInt8[Tensor, "b h w c"]],
    keys: SampleKeys,
    colours: Sequence[Photometric],
    preprocessing: Preprocessing,
) -> tuple[Float[Tensor, "b c h w"], ...]:
    """Views: each crop with colours changed as the one at its place says, and normalised.

    Args:
        crops: the crops of each view, which may differ in size from view to view.
        keys: whose they are.
        colours: one for each view.
        preprocessing: gives the normalisation.
    """
    views = []
    for view, (pixels, colour) in enumerate(zip(crops, colours, strict=True)):
        changed = colour(to_values(pixels), keys.draw("colour", view, num=Photometric.NUM_DRAWS))
        views.append(preprocessing.standardise(changed))
    return tuple(views)


def to_values(pixels: UInt8[Tensor, "b h w c"]) -> Float[Tensor, "b c h w"]:
    """Values in [0, 1], channels first, in memory too: changes of colour work on planes."""
    planes = pixels.permute(0, 3, 1, 2)
    return planes.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def check_crop(scale: tuple[float, float], ratio: tuple[float, float], flip_probability: float) -> None:
    """Refuse ranges that give no crop."""
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale must be two shares of the area, 0 < low <= high <= 1, got {scale}.")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"ratio must be width / height, 0 < low <= high, got {ratio}.")
    if not 0 <= flip_probability <= 1:
        raise ValueError(f"flip_probability must be in [0, 1], got {flip_probability}.")


def random_crops(
    images: Sequence[NDArray[np.uint8]],
    keys: SampleKeys,
    views: Sequence[int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip_probability: float,
    preprocessing: Preprocessing,
) -> UInt8[Tensor, "v b h w c"]:
    """Random resized crops, one for each view, mirrored with a probability.

    Args:
        images: uint8 `[h, w, c]` of any sizes.
        keys: whose they are.
        views: the number of each view, which keys its draws.
        scale: range of the area as a share of the image.
        ratio: range of width / height.
        flip_probability: chance of a horizontal mirror image.
        preprocessing: gives size and channels.
    """
    draws = _draw(keys, views)
    boxes = _view_boxes(_sizes(images), draws, scale, ratio)
    flips = draws[:, :, -1] < flip_probability
    return resize_boxes(images, boxes, flips, preprocessing.image_size, preprocessing.num_channels)


def _draw(keys: SampleKeys, views: Sequence[int]) -> NDArray[np.float64]:
    return np.stack([keys.draw("crop", view, num=CROP_DRAWS) for view in views])


def _view_boxes(
    sizes: NDArray[np.int64],
    draws: NDArray[np.float64],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> NDArray[np.int64]:
    return np.stack([crop_boxes(sizes, draw, scale, ratio) for draw in draws])


def crop_boxes(
    sizes: NDArray[np.int64],
    draws: NDArray[np.float64],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> NDArray[np.int64]:
    """The boxes of RandomResizedCrop, in whole pixels as published.

    Ten tries of area = H W (s0 + u (s1 - s0)), ratio r = exp(log r0 + u' (log r1 - log r0)), width
    round(sqrt(area r)), height round(sqrt(area / r)); the first that fits, at a place drawn uniformly. If none
    fits, the largest centred box whose ratio is in the range.

    Args:
        sizes: height and width of each image, `[b, 2]`.
        draws: uniform draws in [0, 1), `[b, 23]`: ten for the area, ten for the ratio, two for the place.
        scale: range of the area as a share of the image.
        ratio: range of width / height.

    Returns:
        left, top, right, bottom in pixels, int64 `[b, 4]`, right and bottom excluded.
    """
    height, width = sizes[:, 0], sizes[:, 1]
    area = (height * width)[:, None] * (scale[0] + draws[:, :_ATTEMPTS] * (scale[1] - scale[0]))
    low, high = np.log(ratio)
    shape = np.exp(low + draws[:, _ATTEMPTS : 2 * _ATTEMPTS] * (high - low))
    widths, heights = np.rint(np.sqrt(area * shape)), np.rint(np.sqrt(area / shape))
    fits = (widths >= 1) & (widths <= width[:, None]) & (heights >= 1) & (heights <= height[:, None])
    first, rows = fits.argmax(axis=1), np.arange(len(sizes))
    found = fits.any(axis=1)
    widest, highest = np.rint(height * ratio[1]).clip(1, width), np.rint(width / ratio[0]).clip(1, height)
    w = np.where(found, widths[rows, first], widest).astype(np.int64)
    h = np.where(found, heights[rows, first], highest).astype(np.int64)
    left, top = (
        np.where(found, (draw * (room + 1)).astype(np.int64), room // 2)
        for draw, room in ((draws[:, 2 * _ATTEMPTS], width - w), (draws[:, 2 * _ATTEMPTS + 1], height - h))
    )
    return np.stack([left, top, left + w, top + h], axis=1)


def _sizes(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.int64]:
    return np.asarray([image.shape[:2] for image in images], dtype=np.int64).reshape(-1, 2)

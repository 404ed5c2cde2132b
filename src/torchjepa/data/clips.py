"""From videos to clips: which frames, and the views that a learner sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from torchjepa.data.errors import DecodeError
from torchjepa.data.resizing import resize_frames
from torchjepa.data.source import VideoInfo, VideoSource
from torchjepa.data.transforms import (
    CROP_DRAWS,
    Crops,
    Preprocessing,
    SampleKeys,
    ViewTransform,
    check_crop,
    crop_boxes,
)

USUAL_RATE = 25.0  # of a file that does not say its own
_FUZZ = 1e-6  # of a frame: durations are sums of rounded numbers


@runtime_checkable
class ReadingTransform(ViewTransform, Protocol):
    """A transform that chooses what is read of a sample, as a clip is chosen of a video."""

    def read(self, source: VideoSource, index: int, keys: SampleKeys) -> Crops:
        """The crops of one sample, in a worker; each tensor `[v, 1, ...]`, joined to a batch along axis 1."""
        ...


@dataclass(frozen=True)
class ClipTransform:
    """Clips for a masked learner of videos: a random stretch of time, one random resized crop for all its frames.

    A clip of n frames at r a second covers n / r seconds, and frame i is the one on the screen at
    (i + 1/2) / r after its start. With V clips of a video, clip v starts at (v + u) / V of the room that the video
    leaves, u uniform in [0, 1): for one clip anywhere, for several spread over the video. Starts, rates, boxes and
    mirror images are functions of the seed, the epoch and the sample.

    Args:
        preprocessing: gives frames, frame rate, size, channels and normalisation. Where it has no frame rate, every
            frame of the file is taken, at the file's own.
        scale: share of a frame's area that a crop covers, drawn uniformly; (0.3, 1.0) as in V-JEPA.
        ratio: width / height of a crop, drawn uniformly in the logarithm; 0.75 to 1.35 as in V-JEPA.
        flip_probability: chance of a horizontal mirror image; 0.5 is V-JEPA's.
        rate_jitter: j; a clip's frame rate is drawn from r / (1 + j) to r (1 + j), uniformly in the logarithm.
        num_clips: clips of a video, each a view; 1.
        short: what becomes of a video that is shorter than a clip: its last frame is held (`hold`), or it counts
            as one that cannot be decoded (`refuse`).

    Raises:
        ValueError: preprocessing without num_frames, a range that gives no crop, or another argument out of range.
    """

    preprocessing: Preprocessing
    scale: tuple[float, float] = (0.3, 1.0)
    ratio: tuple[float, float] = (0.75, 1.35)
    flip_probability: float = 0.5
    rate_jitter: float = 0.0
    num_clips: int = 1
    short: Literal["hold", "refuse"] = "hold"

    def __post_init__(self) -> None:
        check_crop(self.scale, self.ratio, self.flip_probability)
        if self.preprocessing.num_frames is None:
            raise ValueError(
                "ClipTransform: preprocessing needs num_frames, the frames of a clip, got None; images take "
                "MaskedViewTransform."
            )
        if self.num_clips < 1 or not 0 <= self.rate_jitter < np.inf or self.short not in ("hold", "refuse"):
            raise ValueError(
                "ClipTransform: expected num_clips of at least 1, rate_jitter of at least 0 and short 'hold' or "
                f"'refuse', got {self.num_clips}, {self.rate_jitter}, {self.short!r}."
            )

    def read(self, source: VideoSource, index: int, keys: SampleKeys) -> Crops:
        """The clips of one sample: the files' frames that they show, cropped: one tensor `[v, 1, t, h, w, c]`.

        Args:
            source: the videos.
            index: which of them.
            keys: whose draws; of one sample.

        Raises:
            DecodeError: the video cannot be decoded, or is short and refused.
        """
        return self.crop([source.read_clips(index, lambda info: self.times(info, keys))], keys)

    def times(self, info: VideoInfo, keys: SampleKeys) -> list[NDArray[np.float64]]:
        """When the frames of each clip of a sample appear, float64 `[t]`, in seconds from the sample's start.

        Args:
            info: the video's length and rate.
            keys: whose draws; of one sample.

        Raises:
            DecodeError: the video is shorter than a clip, and refused.
        """
        times = []
        for view in range(self.num_clips):
            place, rate = keys.draw("clip", view, num=2)[0]
            faster = (1 + self.rate_jitter) ** (2 * rate - 1)
            step = _step(info, self.preprocessing.frame_rate) / faster
            times.append(self._times(info, step, (view + place) / self.num_clips))
        return times

    def crop(self, images: Sequence[Sequence[NDArray[np.uint8]]], keys: SampleKeys) -> Crops:
        """Random resized crops of decoded clips: one tensor `[v, b, t, h, w, c]`.

        Args:
            images: the clips of each sample, uint8 `[t, h, w, c]` of any size.
            keys: whose they are.
        """
        num = len(images[0])
        views = []
        for view in range(num):
            draws = keys.draw("crop", view, num=CROP_DRAWS)
            clips = [sample[view] for sample in images]
            sizes = np.asarray([clip.shape[1:3] for clip in clips], dtype=np.int64)
            boxes = crop_boxes(sizes, draws, self.scale, self.ratio)
            flips = draws[:, -1] < self.flip_probability
            views.append(
                torch.stack([self._cut(*each) for each in zip(clips, boxes.tolist(), flips, strict=True)])
            )
        return (torch.stack(views),)

    def finish(self, crops: Crops, keys: SampleKeys) -> tuple[Float[Tensor, "b c t h w"], ...]:
        """The normalised clips, one view each, `[b, c, t, h, w]`."""
        return tuple(self.preprocessing.normalise_clips(clips) for clips in crops[0])

    def _times(self, info: VideoInfo, step: float, share: float) -> NDArray[np.float64]:
        num = self.preprocessing.num_frames
        assert num is not None
        room = info.duration - num * step
        if self.short == "refuse" and room < -step / 2:
            raise DecodeError(
                f"too short: it lasts {info.duration:.2f} s, a clip of {num} frames {num * step:.2f} s"
            )
        return clip_times(info, num, step, share, whole=self.preprocessing.frame_rate is None)

    def _cut(self, clip: NDArray[np.uint8], box: list[int], flip: bool) -> UInt8[Tensor, "t h w c"]:
        left, top, right, bottom = box
        size, channels = self.preprocessing.image_size, self.preprocessing.num_channels
        part = resize_frames(clip[:, top:bottom, left:right], size, channels)
        return part.flip(2) if flip else part


def clip_times(
    info: VideoInfo, num_frames: int, step: float, share: float, *, whole: bool
) -> NDArray[np.float64]:
    """When the frames of a clip appear: start + (i + 1/2) * step, at the middle of the time that each stands for.

    Args:
        info: the video's length and rate.
        num_frames: frames of the clip, n.
        step: seconds from a frame to the next.
        share: where the clip starts, as a share of the room that the video leaves; 1/2 for its middle.
        whole: start with a whole frame of the file, so that each of its frames is met once.

    Returns:
        float64 `[n]`; beyond the end of the video where that is shorter than the clip.
    """
    room = max(info.duration - num_frames * step, 0.0)
    if whole:
        frame = _step(info, None)
        places = int(room / frame + _FUZZ)
        start = min(int(share * (places + 1)), places) * frame
    else:
        start = share * room
    return start + (np.arange(num_frames, dtype=np.float64) + 0.5) * step


def middle_clip(source: VideoSource, index: int, preprocessing: Preprocessing) -> UInt8[Tensor, "t h w c"]:
    """The clip by which a video is judged and encoded: the middle of it, resized but not normalised.

    n frames at preprocessing.frame_rate, where it has none each of the file's own, with as much of the video
    before as after them; of a shorter video, all of it and its last frame held.

    Args:
        source: the videos.
        index: which of them.
        preprocessing: gives frames, frame rate, size and channels.

    Raises:
        DecodeError: the video cannot be decoded.
    """
    num, rate = preprocessing.num_frames, preprocessing.frame_rate
    assert num is not None
    (clip,) = source.read_clips(index, lambda info: [middle_times(info, num, rate)])
    return preprocessing.resize_clip(clip)


def middle_times(info: VideoInfo, num_frames: int, frame_rate: float | None) -> NDArray[np.float64]:
    """When the frames of a video's middle clip appear (see `middle_clip`), float64 `[num_frames]`."""
    return clip_times(info, num_frames, _step(info, frame_rate), 0.5, whole=frame_rate is None)


def _step(info: VideoInfo, frame_rate: float | None) -> float:
    return 1 / (frame_rate or info.frame_rate or USUAL_RATE)

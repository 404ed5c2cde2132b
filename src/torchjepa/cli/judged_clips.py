"""What judging makes of clips: several of a video, the middle frame alone, and raw pixels of a bounded size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from torchjepa.data import Preprocessing, VideoInfo, VideoSource

# Larger inputs are shrunk for the raw-pixel baseline: 50,000 at 224 x 224 in colour would take 30 GB.
PIXEL_SIDE = 64
CLIP_SIDE = 16  # of 2,000 moving digits a linear probe knows as much as at 32 x 32, in a fifth of the time
CLIP_FRAMES = 8


def hold_middle(encode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same encoder, shown of each clip `[b, c, t, h, w]` only the frame t // 2, held through the clip."""

    def encode_still(clips: Tensor) -> Tensor:
        middle = clips.shape[2] // 2
        return encode(clips[:, :, middle : middle + 1].expand_as(clips))

    return encode_still


def pixels_of(views: Tensor) -> Tensor:
    """The input itself, at most 64 x 64 pixels of an image and 8 frames of 16 x 16 of a clip: `[b, 1, values]`.

    Args:
        views: `[b, c, h, w]` or `[b, c, t, h, w]`; frames are taken evenly, each at the middle of its share, and
            come one after the other.
    """
    if views.ndim == 4:
        return _shrunk(views, PIXEL_SIDE).flatten(1)[:, None]
    num = views.shape[2]
    few = min(num, CLIP_FRAMES)
    frames = views[:, :, [(2 * i + 1) * num // (2 * few) for i in range(few)]]
    small = _shrunk(frames.transpose(1, 2).flatten(0, 1), CLIP_SIDE)
    return small.reshape(len(views), 1, -1)


def pixel_limit(preprocessing: Preprocessing) -> str | None:
    """At what size raw pixels are judged, in words; `None` where that is the input's own."""
    frames, side = preprocessing.num_frames, preprocessing.image_size
    if frames is None:
        return f"{PIXEL_SIDE} x {PIXEL_SIDE} pixels" if side > PIXEL_SIDE else None
    if frames <= CLIP_FRAMES and side <= CLIP_SIDE:
        return None
    side = min(side, CLIP_SIDE)
    return f"{min(frames, CLIP_FRAMES)} frames of {side} x {side} pixels"


class SeveralClips:
    """A set of videos as a set of clips: sample i * num_clips + j is stretch j of video i, a video of its own.

    The stretches are of one length and evenly spaced from the video's beginning to its end; they overlap where the
    video is shorter than so many clips.

    Args:
        source: the videos.
        num_clips: stretches of each.
        preprocessing: says how long a clip is.
    """

    def __init__(self, source: VideoSource, num_clips: int, preprocessing: Preprocessing) -> None:
        self.source, self.num_clips, self.preprocessing = source, num_clips, preprocessing
        self.classes, self.num_channels = source.classes, source.num_channels
        self.labels: NDArray[np.int64] = np.repeat(source.labels, num_clips)

    def __len__(self) -> int:
        return len(self.source) * self.num_clips

    def name(self, index: int) -> str:
        """That of the video."""
        return self.source.name(index // self.num_clips)

    def read_clips(self, index: int, choose: Callable[[VideoInfo], Any]) -> list[NDArray[np.uint8]]:
        """Clips of the stretch, uint8 `[t, h, w, c]` each; raises `DecodeError`."""
        video, place = divmod(index, self.num_clips)

        def choose_within(info: VideoInfo) -> list[NDArray[np.float64]]:
            length, start = self._stretch(info, place)
            return [start + times for times in choose(VideoInfo(length, info.frame_rate))]

        return self.source.read_clips(video, choose_within)

    def fingerprint(self) -> dict[str, object]:
        """That of the videos, and how many clips of each."""
        return {**self.source.fingerprint(), "num_clips": self.num_clips}

    def _stretch(self, info: VideoInfo, place: int) -> tuple[float, float]:
        rate = self.preprocessing.frame_rate or info.frame_rate
        clip = info.duration if rate is None else (self.preprocessing.num_frames or 1) / rate
        length = min(info.duration, max(info.duration / self.num_clips, clip))
        return length, place * (info.duration - length) / max(1, self.num_clips - 1)


def _shrunk(images: Tensor, side: int) -> Tensor:
    if max(images.shape[-2:]) <= side:
        return images
    return F.interpolate(images, (side, side), mode="bicubic", antialias=True, align_corners=False)

"""The embedded videos: a handwritten digit moves over a canvas, bounces off its edges and passes behind a bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from torchjepa.data.procedural.digits import digits_of
from torchjepa.data.source import ChooseTimes, Task, VideoInfo
from torchjepa.rng import uniforms

_CANVAS = 32
_NUM_FRAMES = 16
_FRAME_RATE = 8.0
_MIDDLE = _NUM_FRAMES // 2  # the frame at which place and direction are drawn
# In sorted order, as folders and tables give their classes: a video file has the same label.
_DIGITS = tuple("0123456789")
_DIRECTIONS = {
    "down": (1, 0),
    "down-left": (1, -1),
    "down-right": (1, 1),
    "left": (0, -1),
    "right": (0, 1),
    "up": (-1, 0),
    "up-left": (-1, -1),
    "up-right": (-1, 1),
}
_SPEEDS = (2, 4, 8)  # pixels a second


class MovingDigitsSource:
    """Gray videos of 16 frames, 32 x 32 pixels, 8 frames a second: one of scikit-learn's digits moves.

    1. A video takes a digit; those of the training and of the test videos are apart, as in `DigitsSource`. Its
       side is drawn from [10, 14] pixels and its ink scaled by a contrast from [0.7, 1].
    2. It moves in one of eight directions at 2, 4 or 8 pixels a second, not rounded to pixels, and bounces
       off the edges: with room R = 32 - side and velocity v an axis of its corner is at

           x(t) = fold(x_m + v (t - t_m)),  fold(y) = R - |R - (y mod 2 R)|,

       where t_m = 1 s is the time of the middle frame (number 8 from 0) and x_m is drawn from [0, R].
    3. It passes behind a bar as black as the ground, upright or lying with equal chance, across the whole canvas,
       3 to 6 pixels wide, anywhere. (A gray one would be most of what there is to see: docs/log.md.)

    Three tasks: `digit`; `speed` (pixels a second); and `direction`, that at the middle frame, for a bounce
    changes it. There the place is drawn independently of direction and speed, so that the middle frame alone
    tells nothing about either: chance is 1/8 and 1/3. Of the videos 47 % bounce.

    Every draw is uniform and keyed by `(seed, split, video)`. Videos are drawn when they are read.

    Args:
        split: "train" or "test".
        num_samples: number of videos; default 20,000 for training, 1,000 for testing.
        seed: key of all draws. The division into train and test digits does not depend on it.
        bar: draw the bar.

    Attributes:
        tasks: the three, by name; `classes` and `labels` are those of `digit`.

    Raises:
        ValueError: an unknown split, or fewer than one video.
    """

    def __init__(
        self,
        split: Literal["train", "test"],
        num_samples: int | None = None,
        *,
        seed: int = 0,
        bar: bool = True,
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"MovingDigitsSource: split must be 'train' or 'test', got {split!r}.")
        num = {"train": 20_000, "test": 1_000}[split] if num_samples is None else num_samples
        if num < 1:
            raise ValueError(f"MovingDigitsSource: num_samples must be at least 1, got {num}.")
        self.split, self.seed, self.bar = split, seed, bar
        self.num_channels: int = 1
        digits, targets = digits_of(split)
        chosen, directions, speeds = (
            self._choose(purpose, num, among)
            for purpose, among in (
                ("digit", len(digits)),
                ("direction", len(_DIRECTIONS)),
                ("speed", len(_SPEEDS)),
            )
        )
        self.tasks: Mapping[str, Task] = {
            "digit": Task(_DIGITS, targets[chosen]),
            "direction": Task(tuple(_DIRECTIONS), directions),
            "speed": Task(tuple(map(str, _SPEEDS)), speeds),
        }
        self.classes, self.labels = self.tasks["digit"].classes, self.tasks["digit"].labels
        self._digits = digits[chosen]
        units = np.asarray(list(_DIRECTIONS.values()), dtype=np.float64)
        units /= np.linalg.norm(units, axis=1, keepdims=True)
        self._velocities = units[directions] * np.asarray(_SPEEDS)[speeds, None]
        self._places, self._bars = self._draw("place", num, 4), self._draw("bar", num, 3)

    def __len__(self) -> int:
        return len(self._digits)

    def name(self, index: int) -> str:
        """Split and video: `train/17`."""
        return f"{self.split}/{index}"

    def read_clips(self, index: int, choose: ChooseTimes) -> list[NDArray[np.uint8]]:
        """Clips uint8 `[t, 32, 32, 1]` of a video.

        Args:
            index: which video.
            choose: the times of each clip's frames, in seconds, of a video of 2 seconds; a time shows the last
                frame that has begun.
        """
        frames = self.frames(index)
        clips = choose(VideoInfo(_NUM_FRAMES / _FRAME_RATE, _FRAME_RATE))
        # A millionth of a frame late is in time, as times are rounded.
        numbers = ((np.asarray(times) * _FRAME_RATE + 1e-6).astype(np.int64) for times in clips)
        return [frames[each.clip(0, _NUM_FRAMES - 1)] for each in numbers]

    def frames(self, index: int) -> NDArray[np.uint8]:
        """The whole video, uint8 `[16, 32, 32, 1]`."""
        size, contrast = 10 + 4 * self._places[index, 0], 0.7 + 0.3 * self._places[index, 1]
        room = _CANVAS - size
        seconds = (np.arange(_NUM_FRAMES) - _MIDDLE) / _FRAME_RATE
        corners = _fold(self._places[index, 2:] * room + self._velocities[index] * seconds[:, None], room)
        ink = _enlarge(self._digits[index] * np.float32(255 * contrast), size, corners)
        if self.bar:
            ink *= 1 - _bar(self._bars[index])
        return np.rint(ink).astype(np.uint8)[..., None]

    def fingerprint(self) -> dict[str, object]:
        """How the videos were made."""
        return {
            "kind": "moving digits",
            "split": self.split,
            "num_samples": len(self),
            "seed": self.seed,
            "bar": self.bar,
        }

    def _draw(self, purpose: str, num: int, draws: int) -> NDArray[np.float64]:
        return uniforms(self.seed, "moving digits", self.split, purpose, ids=np.arange(num), num=draws)

    def _choose(self, purpose: str, num: int, among: int) -> NDArray[np.int64]:
        return (self._draw(purpose, num, 1)[:, 0] * among).astype(np.int64)


def _fold(places: NDArray[np.float64], room: float) -> NDArray[np.float64]:
    """Where something is that would be at `places` if it were not thrown back at 0 and at `room`."""
    return room - np.abs(room - places % (2 * room))


def _enlarge(digit: NDArray[np.float32], size: float, corners: NDArray[np.float64]) -> NDArray[np.float32]:
    """A digit `[8, 8]`, `size` pixels large, with its corner at each of `corners` `[t, 2]`: `[t, 32, 32]`."""
    # As in `DigitsSource`, but for one digit at a time: on so little NumPy takes a quarter of torch's time.
    pixels, cells = np.arange(_CANVAS) + 0.5, np.arange(len(digit), dtype=np.float32)
    places = ((pixels - corners[:, :, None]) * (len(digit) / size) - 0.5).astype(np.float32)
    weights = np.maximum(1 - np.abs(places[..., None] - cells), 0)
    return weights[:, 0] @ digit @ weights[:, 1].transpose(0, 2, 1)


def _bar(draws: NDArray[np.float64]) -> NDArray[np.float32]:
    """Which share of each column, or of each row, a bar covers: `[1, 32]` or `[32, 1]`."""
    width = 3 + 3 * draws[0]
    start = draws[1] * (_CANVAS - width)
    pixels = np.arange(_CANVAS)
    line = np.minimum(pixels + 1, start + width) - np.maximum(pixels, start)
    return line.clip(0, 1).astype(np.float32).reshape((1, -1) if draws[2] < 0.5 else (-1, 1))

"""The usual way from a video to a clip: read every frame, then take those that are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


def read_all(path: Path) -> list[NDArray[np.uint8]]:
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        stream.thread_type, stream.thread_count = "SLICE", 1
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]


def read_clip(path: Path, numbers: Sequence[int]) -> NDArray[np.uint8]:
    """Frames by their numbers, uint8 `[t, h, w, 3]`."""
    frames = read_all(path)
    return np.stack([frames[number] for number in numbers])

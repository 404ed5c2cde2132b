"""Small video files for tests: every frame says its number in its colour."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_movie(
    path: Path,
    num_frames: int = 24,
    *,
    rate: float | Fraction = 8,
    size: tuple[int, int] = (32, 48),
    keyframe_every: int = 8,
    b_frames: int = 0,
    sound: bool = False,
) -> Path:
    """A video whose frame i is of gray level 10 i (mod 250), with a white top left corner."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=Fraction(rate))
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.options = (
            {} if path.suffix == ".avi" else {"qp": "0", "bf": str(b_frames), "g": str(keyframe_every)}
        )
        audio = file.add_stream("aac", rate=8000) if sound else None
        for i in range(num_frames):
            pixels = np.full((*size, 3), 10 * i % 250, np.uint8)
            pixels[: size[0] // 2, : size[1] // 2] = 255
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
        if audio is not None:
            write_silence(file, audio, 2 * num_frames / rate)
    return path


def write_sound(path: Path, seconds: float = 1.0) -> Path:
    """A file that holds sound and no picture."""
    with av.open(str(path), "w") as file:
        write_silence(file, file.add_stream("aac", rate=8000), seconds)
    return path


def write_silence(file: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    for start in range(0, int(8000 * seconds), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, start
        file.mux(stream.encode(frame))
    file.mux(stream.encode())


def numbers(frames: np.ndarray) -> list[int]:
    """The number of each frame `[t, h, w, 3]`, read from its colour."""
    return np.round(np.asarray(frames)[:, -2, -2].mean(-1) / 10).astype(int).tolist()


def write_scene(
    path: Path,
    num_frames: int,
    *,
    size: tuple[int, int] = (72, 96),
    rate: int = 25,
    keyframe_every: int = 250,
) -> Path:
    """A smooth pattern under a moving window, in H.264 as x264 makes it by default: with B-frames."""
    height, width = size
    rows, columns = np.mgrid[: height + 60, : width + 60]
    waves = [127 + 60 * np.sin(rows / a) + 60 * np.cos(columns / b) for a, b in ((5, 9), (7, 6), (11, 4))]
    pattern = np.stack(waves, axis=-1).astype(np.uint8)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"g": str(keyframe_every)}
        for i in range(num_frames):
            top, left = int(30 + 29 * np.sin(i / 20)), int(30 + 29 * np.cos(i / 13))
            pixels = pattern[top : top + height, left : left + width].copy()
            pixels[i % height :][:6, 3 * i % width :][:, :12] = 255
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    return path

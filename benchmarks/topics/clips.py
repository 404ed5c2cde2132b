"""Clips: from a video file to frames and to a normalised batch, on one core

Videos are pans over photographs (scikit-learn's two) with camera noise, 25 frames a second, H.264 by x264 with its
defaults (medium, crf 23, up to three B-frames, a keyframe every 250 frames), or with a keyframe every 25. A clip is
16 frames, 4 a second, from a start drawn anew for each file; the peer reads every frame as RGB by PyAV, on one thread
as we do, and takes the 16. Both get the same frames, bit for bit.

The limit is the decoder alone: seek, then decode what other frames are made from, up to the clip's last frame, without
a conversion to RGB. Where the only keyframe is the first, a clip near the end costs most of the file.

Small files, 64 x 64 (16 frames) or 32 x 32, are what `vjepa-digits` trains on: decoding, crops and normalisation of 64
of them by `BatchStream`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from benchmarks.harness import Comparison, Contenders
from benchmarks.peers import clips as plain
from torchjepa.data import (
    BatchStream,
    ClipTransform,
    ErrorLog,
    Preprocessing,
    SampleKeys,
    VideoFolderSource,
    VideoInfo,
)
from torchjepa.types import BatchKeys

_RATE, _SECONDS, _WANTED = 25, 10, 4.0
_NUM_FILES = 4
_TRANSFORM = ClipTransform(Preprocessing(224, num_frames=16, frame_rate=_WANTED))


def comparisons() -> Iterator[Comparison]:
    for every in (250, 25):
        yield Comparison(
            f"640 x 360, 10 s, a keyframe every {every} frames, {_NUM_FILES} clips decoded",
            "read all",
            partial(_build, every),
            goal=3.0,
            bar=2.4,
            tolerance=0.0,
            pairs=9,
            threads=1,
        )
    for side in (64, 32):
        yield Comparison(
            f"{side} x {side}, 16 frames at 8 a second, 64 files to a batch",
            "read all",
            partial(_build_small, side),
            pairs=9,
            threads=1,
        )


def _build(every: int) -> Contenders:
    folder, paths = _videos(every)
    source = VideoFolderSource(folder.name, cache_bytes=0)
    times = [_times(index) for index in range(_NUM_FILES)]
    numbers = [(each * _RATE + 1e-6).astype(int).tolist() for each in times]

    def ours(folder: object = folder) -> list[NDArray[np.uint8]]:  # the files stay while this is there
        return [source.read_clips(i, lambda info, i=i: [times[i]])[0] for i in range(_NUM_FILES)]

    def peer() -> list[NDArray[np.uint8]]:
        return [plain.read_clip(path, each) for path, each in zip(paths, numbers, strict=True)]

    def limit() -> None:
        for path, each in zip(paths, numbers, strict=True):
            _decode_alone(path, each)

    same = all(np.array_equal(one, two) for one, two in zip(ours(), peer(), strict=True))
    return Contenders(ours, peer, limit, 0.0 if same else 1.0)


def _times(index: int) -> NDArray[np.float64]:
    keys = SampleKeys(0, np.zeros(1, dtype=np.int64), np.asarray([index]))
    return _TRANSFORM.times(VideoInfo(_SECONDS, _RATE), keys)[0]


def _decode_alone(path: Path, numbers: list[int]) -> None:
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        stream.thread_type, stream.thread_count = "SLICE", 1
        tick = 1 / (_RATE * stream.time_base)
        stream.codec_context.skip_frame = "NONREF"
        file.seek(int(numbers[0] * tick), stream=stream, backward=True)
        for frame in file.decode(stream):
            if frame.pts >= numbers[-1] * tick:
                return


def _build_small(side: int) -> Contenders:
    folder, num = tempfile.TemporaryDirectory(), 64
    paths = [Path(folder.name) / f"{index:02}.mp4" for index in range(num)]
    for index, path in enumerate(paths):
        _encode(path, _pan(index, (side, side), 16), 8, 250)
    transform = ClipTransform(Preprocessing(side, num_frames=16))
    source = VideoFolderSource(folder.name, min_size=2 * side, cache_bytes=0)
    stream = BatchStream(source, transform, seed=0, errors=ErrorLog(None, num))
    keys = BatchKeys(0, (0,) * num, tuple(range(num)), 0, num)

    def ours(folder: object = folder) -> Tensor:
        return next(stream.batches([keys], "cpu")).views[0]

    def peer() -> list[NDArray[np.uint8]]:
        return [plain.read_clip(path, range(16)) for path in paths]

    return Contenders(ours, peer)


def _videos(every: int) -> tuple[tempfile.TemporaryDirectory[str], list[Path]]:
    folder = tempfile.TemporaryDirectory()
    paths = [Path(folder.name) / f"{index}.mp4" for index in range(_NUM_FILES)]
    for index, path in enumerate(paths):
        _encode(path, _pan(index, (360, 640), _RATE * _SECONDS), _RATE, every)
    return folder, paths


def _encode(path: Path, frames: Iterator[NDArray[np.uint8]], rate: int, every: int) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=rate)
        stream.options = {"g": str(every)}
        for number, pixels in enumerate(frames):
            if number == 0:
                stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "yuv420p"
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())


def _pan(index: int, size: tuple[int, int], num: int) -> Iterator[NDArray[np.uint8]]:
    rng, photograph = np.random.default_rng(index), _photographs(size)[index % 2]
    noise = rng.normal(0, 2, (8, *size, 3)).astype(np.float32)
    room, phase = np.subtract(photograph.shape[:2], size), rng.uniform(0, 6, 2)
    for number in range(num):
        top, left = (room * (0.5 + 0.49 * np.sin(phase + number / np.asarray([40, 55])))).astype(int)
        pixels = photograph[top : top + size[0], left : left + size[1]] + noise[number % 8]
        yield pixels.clip(0, 255).astype(np.uint8)


@cache
def _photographs(size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    larger = (int(1.5 * size[1]), int(1.5 * size[0]))
    return [np.asarray(Image.fromarray(image).resize(larger)) for image in load_sample_images().images]

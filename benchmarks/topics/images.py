"""Images: from JPEG files to normalised crops of 224 pixels, on one core

Sources are photographs (scikit-learn's two, cut at random, with noise, quality 85 to 96, 4:2:0). Both sides get the
same boxes. Ours is the path of a training run: `FolderSource`, `BatchStream`, `MaskedViewTransform`, files decoded as
torchjepa does without and, in rows of their own, with simplejpeg. From the second epoch on the sizes of the images are
known and rows below the crops are not decoded; the first epoch has its own rows. The limit is the decoding of all rows
alone, by the faster of the two libraries at hand; most of it is Huffman decoding, which no smaller size saves.

A photograph of 500 x 375 is decoded whole. One of 2000 x 1500 is decoded at half its size, which keeps twice the
training size: that is faster and changes the pixels, by as much as *apart* says.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from benchmarks.harness import Comparison, Contenders, relative_distance
from benchmarks.peers import images as plain
from torchjepa.data import (
    BatchStream,
    ErrorLog,
    FolderSource,
    MaskedViewTransform,
    Preprocessing,
    SampleKeys,
    decode_image,
    jpeg,
)
from torchjepa.data.transforms import crop_boxes
from torchjepa.types import BatchKeys

_SIDE = 224
_TRANSFORM = MaskedViewTransform(Preprocessing(_SIDE))
_MEAN, _STD = (
    torch.tensor(each)[:, None, None]
    for each in (_TRANSFORM.preprocessing.mean, _TRANSFORM.preprocessing.std)
)


def comparisons() -> Iterator[Comparison]:
    for size, num, goal, tolerance in (((500, 375), 32, 2.0, 0.01), ((2000, 1500), 8, None, 0.2)):
        what = f"{size[0]} x {size[1]}, {num} files"
        for library in ("simplejpeg", "Pillow") if jpeg.simplejpeg is not None else ("Pillow",):
            for epoch, source in (("", FolderSource), (", first epoch", _FirstEpoch)):
                yield Comparison(
                    f"{what}, decoded by {library}{epoch}",
                    "pillow",
                    partial(_build, size, num, library, source),
                    goal=goal,
                    bar=1.05 if goal is not None and source is FolderSource else None,
                    tolerance=tolerance,
                    threads=1,
                )
    yield Comparison("500 x 375, crops alone", "pillow", _build_crops, tolerance=0.01, threads=1)


class _FirstEpoch(FolderSource):
    def known_sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.zeros((len(indices), 2), dtype=np.int64)


def _build(size: tuple[int, int], num: int, library: str, kind: type[FolderSource]) -> Contenders:
    folder, paths = _photographs(size, num)
    source = kind(folder.name, min_size=2 * _SIDE, cache_bytes=0)
    keys = BatchKeys(0, (0,) * num, tuple(range(num)), 0, num)
    stream = BatchStream(source, _TRANSFORM, seed=0, errors=ErrorLog(None, num))
    decoder = jpeg.simplejpeg if library == "simplejpeg" else None

    def ours(folder: object = folder) -> Tensor:  # the files stay while this is there
        with mock.patch.object(jpeg, "simplejpeg", decoder):
            return next(stream.batches([keys], "cpu")).views[0]

    peer = partial(plain.load_batch, paths, _boxes(size, num).tolist(), _SIDE, _MEAN, _STD)
    limit = partial(_decode_all, paths)
    return Contenders(ours, peer, limit, relative_distance([ours()], [peer()]))


def _decode_all(paths: list[Path]) -> list[np.ndarray]:
    return [decode_image(path, 2 * _SIDE) for path in paths]


def _build_crops() -> Contenders:
    size, num = (500, 375), 32
    folder, paths = _photographs(size, num)
    pictures = [plain.decode(path) for path in paths]
    arrays = [np.asarray(picture) for picture in pictures]
    folder.cleanup()
    boxes = _boxes(size, num).tolist()

    def ours() -> Tensor:
        return _TRANSFORM.crop(arrays, _keys(num))[0][0]

    def peer() -> list[Image.Image]:
        return [plain.crop(picture, box, _SIDE) for picture, box in zip(pictures, boxes, strict=True)]

    theirs = torch.from_numpy(np.stack([np.asarray(crop) for crop in peer()]))
    return Contenders(ours, peer, None, relative_distance([ours().float()], [theirs.float()]))


def _keys(num: int) -> SampleKeys:
    return SampleKeys(0, np.zeros(num, dtype=np.int64), np.arange(num))


def _boxes(size: tuple[int, int], num: int) -> np.ndarray:
    # Of the photograph as it is in the file, where ours may have decoded it at half its size.
    width, height = size
    reduction = max(each for each in (1, 2, 4, 8) if each == 1 or min(size) // each >= 2 * _SIDE)
    sizes = np.asarray([[-(-height // reduction), -(-width // reduction)]] * num)
    draws = _keys(num).draw("crop", 0, num=23)
    return crop_boxes(sizes, draws, _TRANSFORM.scale, _TRANSFORM.ratio) * reduction


def _photographs(size: tuple[int, int], num: int) -> tuple[tempfile.TemporaryDirectory[str], list[Path]]:
    rng, folder = np.random.default_rng(0), tempfile.TemporaryDirectory()
    originals = [Image.fromarray(image) for image in load_sample_images().images]
    paths = [Path(folder.name) / f"{index:03}.jpg" for index in range(num)]
    for index, path in enumerate(paths):
        original = originals[index % len(originals)]
        height = rng.uniform(0.7, 1.0) * min(original.height, original.width * size[1] / size[0])
        width = height * size[0] / size[1]
        left, top = rng.uniform(0, original.width - width), rng.uniform(0, original.height - height)
        cut = original.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        noisy = np.asarray(cut) + rng.normal(0, rng.uniform(0, 6), (size[1], size[0], 3))
        picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        picture.save(path, quality=int(rng.integers(85, 97)), subsampling="4:2:0")
    return folder, paths

"""Embedding a data set to a file, over the number of images: time linear, memory flat."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from benchmarks.scaling.curve import Curve, growth_of
from torchjepa.data import ArraySource, ErrorLog, EvalStream, Preprocessing
from torchjepa.evaluation import stream_features, write_features
from torchjepa.nn import MeanPool, ViT

_SIDE = 32


def curves() -> Iterator[Curve]:
    """A ViT of 64 channels on 32 x 32, what `jepa embed` does."""
    sizes, most = (2_000, 8_000, 32_000, 128_000), {"seconds": 1.0, "bytes": 0.0}
    yield Curve("embedding over images", "images", sizes, _embed, most, fresh=True)


def _embed(num: int) -> Mapping[str, float]:
    import time

    source = ArraySource(np.random.default_rng(0).integers(0, 256, (num, _SIDE, _SIDE, 3), dtype=np.uint8))
    encoder = ViT(image_size=_SIDE, patch_size=8, embed_dim=64, depth=2, num_heads=2)
    preprocessing = Preprocessing(image_size=_SIDE, num_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    with tempfile.TemporaryDirectory() as folder:
        times: list[float] = []

        def embed() -> None:
            start = time.perf_counter()
            stream = EvalStream(source, preprocessing, errors=ErrorLog(None, num, max_fraction=0.01))
            chunks = stream_features(encoder, stream, device="cpu", pool=MeanPool())
            write_features(Path(folder, "features.npz"), chunks, name=source.name, classes=source.classes)
            times.append(time.perf_counter() - start)

        grown = growth_of(embed)
        return {"seconds": times[0], "bytes": grown}

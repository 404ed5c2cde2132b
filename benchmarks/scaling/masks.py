"""Drawing masks over the tokens and over the batch."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable, Iterator, Mapping

from benchmarks.scaling.curve import Curve, seconds_of
from torchjepa import rng
from torchjepa.masking import MultiBlockMasking, RandomMasking
from torchjepa.types import Grid, MaskSampler

_LINEAR = {"seconds": 1.0, "bytes": 1.0}
_SIDES = (8, 14, 20, 28, 40, 56)


def curves() -> Iterator[Curve]:
    """Multi-block masks and random ones: 64 samples of growing grids, growing batches at 14 x 14."""
    tokens, batches = tuple(side * side for side in _SIDES), (8, 32, 128, 512, 2048)
    for name, mask in (("masks", MultiBlockMasking()), ("random masks", RandomMasking(0.6))):
        yield Curve(f"{name} over tokens", "tokens", tokens, _of_tokens(mask), _LINEAR)
        yield Curve(f"{name} over batch", "samples", batches, _of_batch(mask), _LINEAR)
    # Found once for each grid, and kept.
    yield Curve("first masks over tokens", "tokens", tokens, _first, {"seconds": 1.0})


def _of_tokens(mask: MaskSampler) -> Callable[[int], Mapping[str, float]]:
    return lambda tokens: _draw(mask, math.isqrt(tokens), 64)


def _of_batch(mask: MaskSampler) -> Callable[[int], Mapping[str, float]]:
    return lambda samples: _draw(mask, 14, samples)


def _draw(mask: MaskSampler, side: int, batch_size: int) -> Mapping[str, float]:
    grid, generator = Grid(h=side, w=side), rng.generator(0, "mask")
    mask(grid, batch_size, generator)
    seconds = seconds_of(lambda: mask(grid, batch_size, generator), most=200)
    # NumPy's part of the memory, which is nearly all of it.
    tracemalloc.start()
    mask(grid, batch_size, generator)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"seconds": seconds, "bytes": peak}


def _first(tokens: int) -> Mapping[str, float]:
    side, count = math.isqrt(tokens), iter(range(1_000_000))

    def call() -> object:
        # Another configuration each time, so that nothing is known about it yet.
        mask = MultiBlockMasking(target_aspect=(0.75, 1.5 + 1e-9 * next(count)))
        return mask(Grid(h=side, w=side), 1, rng.generator(0, "mask"))

    call()
    return {"seconds": seconds_of(call)}

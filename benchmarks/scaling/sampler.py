"""Choosing samples over the size of the data set: the order of an epoch, and each step within it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from benchmarks.scaling.curve import Curve, growth_of, seconds_of
from torchjepa.engine import KeyedSampler

_SIZES = (1_000, 10_000, 100_000, 1_000_000)


def curves() -> Iterator[Curve]:
    """A new epoch costs its permutation; a step costs its batch, whatever the data set."""
    yield Curve(
        "sampler's epoch over files", "files", _SIZES, _epoch, {"seconds": 1.0, "bytes": 1.0}, fresh=True
    )
    yield Curve("sampler's step over files", "files", _SIZES, _step, {"seconds": 0.0})
    yield Curve("sampler's step over batch", "samples", (8, 64, 512, 4096), _batch, {"seconds": 1.0})


def _sampler(num_samples: int, batch_size: int = 256) -> KeyedSampler:
    return KeyedSampler(num_samples, batch_size, seed=0, total_steps=1_000_000)


def _epoch(num_samples: int) -> Mapping[str, float]:
    def begin() -> object:
        return next(iter(_sampler(num_samples)))

    grown = growth_of(begin)  # first: what is freed once may be used again
    return {"seconds": seconds_of(begin), "bytes": grown}


def _step(num_samples: int) -> Mapping[str, float]:
    # No more steps than an epoch of the smallest set has.
    steps = iter(_sampler(num_samples, 8))
    next(steps)
    return {"seconds": seconds_of(lambda: next(steps), most=100)}


def _batch(batch_size: int) -> Mapping[str, float]:
    steps = iter(_sampler(1_000_000, batch_size))
    next(steps)
    return {"seconds": seconds_of(lambda: next(steps), most=100)}

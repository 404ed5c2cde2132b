"""What is compared: a row of the table, before it is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Contenders:
    """Two ways to do one thing, ready to be timed.

    Args:
        ours: one call of what torchjepa does; nothing is prepared inside.
        peer: the same work as others do it.
        limit: the least that the machine needs for it: the same matrix products alone, a copy of the same bytes.
        deviation: distance between both results over the size of the peer's, already computed.
    """

    ours: Callable[[], object]
    peer: Callable[[], object]
    limit: Callable[[], object] | None = None
    deviation: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A row of times.

    Args:
        name: what is done, with its sizes and dtypes.
        peer: whose way it is compared with; what `--vs` selects.
        build: makes the contenders and checks that they compute the same numbers; called right before timing.
        goal: the ratio peer / ours that is wanted.
        limit_goal: the greatest ratio ours / limit that is wanted.
        bar: the ratio under which the short form fails, unless noise explains it.
        tolerance: the greatest deviation between the two results.
        pairs: how many times each is timed, in turn.
        threads: torch threads.
    """

    name: str
    peer: str
    build: Callable[[], Contenders]
    goal: float | None = None
    limit_goal: float | None = None
    bar: float | None = None
    tolerance: float | None = None
    pairs: int = 15
    threads: int = 2


@dataclass(frozen=True)
class Peak:
    """A row of memory: the growth of the peak resident set in a fresh process each.

    Args:
        name: what is done, with its sizes and dtypes.
        peer: whose way it is compared with; what `--vs` selects.
        ours: `"module:function"`; the function prepares and returns the callable that is watched.
        theirs: the same for the peer.
        goal: the greatest ratio ours / peer that is wanted.
        threads: torch threads.
    """

    name: str
    peer: str
    ours: str
    theirs: str
    goal: float | None = None
    threads: int = 2


def relative_distance(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """|ours - theirs| / |theirs| over all entries of all tensors, in float64.

    Args:
        ours: tensors.
        theirs: as many, of the same shapes.
    """
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(ours, theirs, strict=True)]
    apart = sum(float((a - b).square().sum()) for a, b in pairs)
    size = sum(float(b.square().sum()) for _, b in pairs)
    return (apart / max(size, 1e-300)) ** 0.5

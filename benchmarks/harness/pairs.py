"""Times in interleaved pairs: ours, the peer and the limit in turn, so that what disturbs one disturbs all.

pyperf keeps the clock, the values with what it knows of the machine, and their file; the order is ours, since its own
runner times one thing to the end before it begins the next.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import pyperf
import torch

from benchmarks.harness.comparison import Comparison, Contenders

_LEAST_SECONDS = (
    5e-3  # of one sample: shorter calls are timed several at once, or the clock is what is measured
)


@dataclass(frozen=True)
class Timing:
    """What was measured.

    Args:
        seconds: of one call, sample by sample, under `ours`, `peer` and, where there is one, `limit`.
        deviation: distance of the two results.
        disturbed: share of the processors that others used meanwhile.
    """

    seconds: Mapping[str, list[float]]
    deviation: float | None
    disturbed: float

    @property
    def ratios(self) -> list[float]:
        """Peer over ours, pair by pair, in order of size."""
        return sorted(peer / ours for peer, ours in zip(self.seconds["peer"], self.seconds["ours"]))

    @property
    def ratio(self) -> float:
        """The median of the pairs' ratios."""
        return statistics.median(self.ratios)

    @property
    def of_limit(self) -> float | None:
        """Ours over the limit, the median of the samples' ratios."""
        if "limit" not in self.seconds:
            return None
        return statistics.median(a / b for a, b in zip(self.seconds["ours"], self.seconds["limit"]))

    @property
    def interval(self) -> tuple[float, float]:
        """Where the ratio's median lies with a probability of 95 %, by the order of the pairs alone."""
        ratios = self.ratios
        n, below, tail = len(ratios), 0, 0.0
        while below < n // 2 and tail + math.comb(n, below) / 2**n <= 0.025:
            tail += math.comb(n, below) / 2**n
            below += 1
        lowest = max(below - 1, 0)
        return ratios[lowest], ratios[-1 - lowest]

    def median(self, who: str) -> float:
        """Seconds of one call.

        Args:
            who: `ours`, `peer` or `limit`.
        """
        return statistics.median(self.seconds[who])


def time_comparison(comparison: Comparison, pairs: int | None = None) -> Timing:
    """Build the contenders, check them, and time them in turn.

    Args:
        comparison: the row.
        pairs: how many samples, in place of the row's own.

    Raises:
        RuntimeError: their results are further apart than the row allows.
    """
    with _threads(comparison.threads):
        contenders = comparison.build()
        _check(comparison, contenders)
        calls = {"ours": contenders.ours, "peer": contenders.peer}
        if contenders.limit is not None:
            calls["limit"] = contenders.limit
        loops = {who: _calibrate(call) for who, call in calls.items()}
        seconds: dict[str, list[float]] = {who: [] for who in calls}
        with _Disturbance() as disturbance:
            for number in range(pairs or comparison.pairs):
                # First in one order, then in the other: who follows whom must not matter.
                for who in list(calls) if number % 2 else reversed(list(calls)):
                    seconds[who].append(_time(calls[who], loops[who]))
        return Timing(seconds, contenders.deviation, disturbance.share)


def as_pyperf(name: str, timing: Timing) -> Iterator[pyperf.Benchmark]:
    """The values as pyperf keeps them, for `pyperf show`, `hist` and `compare_to`.

    Args:
        name: what was timed.
        timing: the times.
    """
    for who, values in timing.seconds.items():
        yield pyperf.Benchmark([pyperf.Run(values, metadata={"name": f"{name}: {who}"})])


def _check(comparison: Comparison, contenders: Contenders) -> None:
    deviation, tolerance = contenders.deviation, comparison.tolerance
    if deviation is not None and tolerance is not None and not deviation <= tolerance:
        raise RuntimeError(
            f"{comparison.name}: ours and {comparison.peer}'s results are {deviation:.1e} apart, more than "
            f"{tolerance:.1e}; a comparison of times would mean nothing."
        )


def _calibrate(call: Callable[[], object]) -> int:
    loops = 1
    _time(call, 1)  # caches, lazily built tables, thread pools
    while (once := loops * _time(call, loops)) < _LEAST_SECONDS and loops < 1 << 20:
        loops = max(2 * loops, min(math.ceil(loops * _LEAST_SECONDS / max(once, 1e-9)), 64 * loops))
    return loops


def _time(call: Callable[[], object], loops: int) -> float:
    start = pyperf.perf_counter()
    for _ in range(loops):
        call()
    return (pyperf.perf_counter() - start) / loops


@contextmanager
def _threads(num: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Disturbance:
    # What the whole machine worked, less what this process and its children did.
    share = 0.0

    def __enter__(self) -> _Disturbance:
        self._machine, self._own, self._start = _busy(), _own(), pyperf.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        elapsed = max(pyperf.perf_counter() - self._start, 1e-9)
        others = (_busy() - self._machine) - (_own() - self._own)
        self.share = max(others, 0.0) / (elapsed * (psutil.cpu_count() or 1))


def _busy() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def _own() -> float:
    process = psutil.Process()
    everyone = [process, *process.children(recursive=True)]
    return sum(each.cpu_times().user + each.cpu_times().system for each in everyone)

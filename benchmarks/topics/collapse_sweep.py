"""Collapse regularizers over all sizes: is ours ever slower?

Every n in 2..4096 and d in 2..8192, by powers, a few pairs each; run when asked for by name, not with the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.harness import Comparison
from benchmarks.topics.collapse import GOALS, comparison

ON_REQUEST = True
SAMPLES, DIMENSIONS = (2, 8, 32, 128, 512, 4096), (2, 8, 32, 128, 512, 2048, 8192)


def comparisons() -> Iterator[Comparison]:
    for name in GOALS:
        for n in SAMPLES:
            for d in DIMENSIONS:
                # At few samples the published gradients are rounding: nothing to compare with.
                yield replace(comparison(name, n, d, 1.0), pairs=5, tolerance=None)

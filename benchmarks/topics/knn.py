"""kNN: the vote of the 20 nearest neighbours by cosine, beside scikit-learn's brute force

The features lie around 100 centres in a space of 24 dimensions, with noise in all: neighbours differ among each other
as those of trained encoders do. *uniform* ones fill the sphere; *tight* clusters are too close for bfloat16, so that
all is compared in float32, which is also what a CPU without bfloat16 products does. The limit is the matrix product
in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from benchmarks.harness import Comparison, Contenders, Peak
from torchjepa.evaluation import Features, knn_predict, nearest

_K = 20
_LARGE = (50_000, 10_000, 384)
_SMALL = (5_000, 1_000, 192)


def comparisons() -> Iterator[Comparison | Peak]:
    for kind in ("clustered", "uniform", "tight"):
        asked = kind == "clustered"
        yield _comparison(kind, *_LARGE, goal=5.0 if asked else None)
    yield _comparison("clustered", *_SMALL, bar=0.9)
    yield Peak(
        f"{_name('clustered', *_LARGE)}, features apart",
        "scikit-learn",
        f"{__name__}:watch_ours",
        f"{__name__}:watch_theirs",
        threads=2,
    )


def _comparison(
    kind: str, num_bank: int, num_queries: int, dim: int, goal: float | None = None, bar: float | None = None
) -> Comparison:
    return Comparison(
        _name(kind, num_bank, num_queries, dim),
        "scikit-learn",
        partial(_build, kind, num_bank, num_queries, dim),
        goal=goal,
        bar=bar,
        # Where similarities are equal to within rounding either neighbour will do.
        tolerance=1e-5,
        pairs=5 if num_bank > 10_000 else 15,
    )


def _name(kind: str, num_bank: int, num_queries: int, dim: int) -> str:
    return f"{num_bank:,} x {dim} {kind}, {num_queries:,} queries"


def _features(kind: str, num: int, dim: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(99)
    labels = torch.randint(100, (num,), generator=generator)
    x = torch.randn(num, dim, generator=generator)
    if kind == "clustered":
        centres = torch.randn(100, 24, generator=fixed)
        plane = torch.randn(24, dim, generator=fixed)
        x = (centres[labels] + torch.randn(num, 24, generator=generator)) @ plane + 1.0 + x
    elif kind == "tight":
        x = torch.randn(100, dim, generator=fixed)[labels] + 0.03 * x
    return Features(x, labels, torch.arange(num))


def _build(kind: str, num_bank: int, num_queries: int, dim: int) -> Contenders:
    train, test = _features(kind, num_bank, dim, 0), _features(kind, num_queries, dim, 1)
    theirs = _scikit_learn(train)
    rows = torch.from_numpy(theirs.kneighbors(test.features.numpy(), return_distance=False))
    deviation = _shortfall(train.features, test.features, nearest(test.features, train.features, _K)[1], rows)
    left, right = test.features[:512], train.features.T
    out = torch.empty(len(left), num_bank)

    def product() -> None:
        for rows in test.features.split(len(left)):
            torch.mm(rows, right, out=out[: len(rows)])

    return Contenders(
        partial(knn_predict, train, test.features, k=_K),
        partial(theirs.predict, test.features.numpy()),
        product,
        deviation,
    )


def _scikit_learn(train: Features) -> KNeighborsClassifier:
    classifier = KNeighborsClassifier(_K, metric="cosine", algorithm="brute")
    return classifier.fit(train.features.numpy(), train.labels.numpy())


def _shortfall(bank: Tensor, queries: Tensor, ours: Tensor, theirs: Tensor) -> float:
    # How much less similar our i-th neighbour is than theirs, at most, in float64.
    bank, queries = F.normalize(bank.double(), dim=1), F.normalize(queries.double(), dim=1)
    greatest = 0.0
    for query, a, b in zip(queries.split(256), ours.split(256), theirs.split(256), strict=True):
        similar = [torch.einsum("qd,qkd->qk", query, bank[rows]).sort(dim=1).values for rows in (a, b)]
        greatest = max(greatest, float((similar[1] - similar[0]).abs().max()))
    return greatest


def watch_ours() -> Callable[[], object]:
    train, test = _features("clustered", *_LARGE[::2], 0), _features("clustered", *_LARGE[1:], 1)
    knn_predict(train[:2000], test.features[:2000], k=_K)
    return partial(knn_predict, train, test.features, k=_K)


def watch_theirs() -> Callable[[], object]:
    train, test = _features("clustered", *_LARGE[::2], 0), _features("clustered", *_LARGE[1:], 1)
    _scikit_learn(train[:2000]).predict(test.features[:2000].numpy())
    return partial(_scikit_learn(train).predict, test.features.numpy())

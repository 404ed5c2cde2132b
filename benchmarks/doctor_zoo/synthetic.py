"""Feature sets drawn to be healthy, broken in one known way, or too little to tell."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.doctor_zoo.case import (
    COMPLETE,
    COPIES,
    DIMENSIONAL,
    DRIFT,
    HEALTHY,
    TEMPORAL,
    TOKEN,
    TOO_FEW,
    Case,
    Material,
)
from benchmarks.doctor_zoo.proofs import Judge, alike, constant, constructed, copies, drifts, few, narrow
from torchjepa.evaluation import measure_health
from torchjepa.rng import generator


class Draw:
    """A keyed source of Gaussian numbers."""

    def __init__(self, name: str) -> None:
        self._source = generator(1, "zoo synthetic", name)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._source)


def power_law(draw: Draw, n: int, d: int, alpha: float) -> Tensor:
    """Covariance with eigenvalues j^-alpha in a random basis."""
    scale = torch.arange(1, d + 1).float().pow(-alpha / 2)
    return (draw(n, d) * scale) @ torch.linalg.qr(draw(d, d)).Q


def low_rank(draw: Draw, n: int, d: int, rank: int, noise: float) -> Tensor:
    """Samples on a plane of so many dimensions, and a little noise."""
    return draw(n, rank) @ draw(rank, d) / rank**0.5 + noise * draw(n, d)


def clustered(draw: Draw, n: int, d: int) -> Tensor:
    """Ten classes, as far apart as their members are: what a good encoder makes of digits."""
    return 1.5 * draw(10, d)[torch.arange(n) % 10] + power_law(draw, n, d, 0.5) * d**0.25


def relu_with_mean(draw: Draw, n: int, d: int) -> Tensor:
    """Non-negative features whose mean is larger than their deviation, one in twenty always zero."""
    x = F.relu(1.5 + low_rank(draw, n, d, d // 2, 0.3))
    return x * (torch.arange(d) % 20 != 0)


def sparse(draw: Draw, n: int, d: int) -> Tensor:
    """Features of which nine in ten are zero at a time."""
    return F.relu(draw(n, d) - 1.28)


def tokens_like_a_vit(draw: Draw, b: int, n: int, d: int) -> Tensor:
    """LayerNormed tokens: what the picture shares, what the place shares, and what is particular."""
    return F.layer_norm(draw(b, 1, d) + 0.7 * draw(1, n, d) + draw(b, n, d), (d,))


def walk(draw: Draw, b: int, t: int, d: int) -> Tensor:
    """Clips that start anywhere and wander: an autoregression of coefficient 0.8."""
    x = [draw(b, d)]
    for _ in range(t - 1):
        x.append(0.8 * x[-1] + 0.6 * draw(b, d))
    return torch.stack(x, dim=1)


def alike_within(draw: Draw, b: int, n: int, d: int, noise: float) -> Tensor:
    """Rows of one sample that are one vector and a little noise."""
    return draw(b, 1, d) + noise * draw(b, n, d)


def _encoder(make: Callable[[Draw], Tensor]) -> Callable[[Draw], dict[str, Tensor]]:
    return lambda draw: {"encoder": make(draw)}


def _with_tokens(make: Callable[[Draw], Tensor], name: str = "tokens") -> Callable[[Draw], dict[str, Tensor]]:
    def features(draw: Draw) -> dict[str, Tensor]:
        x = make(draw)
        return {"encoder": x.mean(1), name: x}

    return features


def _prediction(copied: float, error: float) -> Callable[[Draw], dict[str, Tensor]]:
    def features(draw: Draw) -> dict[str, Tensor]:
        clips = walk(draw, 512, 2, 64)
        context, target = clips[:, 0], clips[:, 1]
        prediction = copied * context + (1 - copied) * target + error * draw(512, 64)
        return {"encoder": context, "prediction": prediction, "target": target, "context": context}

    return features


def _followed(scale: Callable[[float], float]) -> Callable[[Draw], Material]:
    """A predictor half right and targets whose scale is a function of the share of the run done; 40 rows."""

    def make(draw: Draw) -> Material:
        features = _prediction(0.35, 0.2)(draw)
        rows = []
        for index in range(40):
            seen = {
                **features,
                **{name: features[name] * scale(index / 39) for name in ("prediction", "target")},
            }
            figures = {f"health/{name}": value for name, value in measure_health(seen).items()}
            rows.append({"step": 10 * index, "loss": 0.3 * scale(index / 39), "lr": 1e-3, **figures})
        last = {name: x if name == "encoder" else x * scale(1.0) for name, x in features.items()}
        return Material(last, rows)

    return make


def _run(
    name: str, expected: str, how: str, make: Callable[[Draw], Material], proof: Judge = constructed
) -> Case:
    return Case(name, expected, how, lambda: make(Draw(name)), proof, trained=False)


def _case(
    name: str,
    expected: str,
    how: str,
    features: Callable[[Draw], dict[str, Tensor]],
    proof: Judge = constructed,
) -> Case:
    return Case(name, expected, how, lambda: Material(features(Draw(name))), proof, trained=False)


def _nan(draw: Draw) -> Tensor:
    x = draw(512, 64)
    x[draw(512) > 1] = float("nan")
    return x


_HEALTHY = [
    _case("gaussian", HEALTHY, "N(0, I), 1,024 x 64", _encoder(lambda draw: draw(1024, 64))),
    _case(
        "gaussian-tiny-scale", HEALTHY, "N(0, I) times 0.001", _encoder(lambda draw: 1e-3 * draw(1024, 64))
    ),
    _case("gaussian-more-dims", HEALTHY, "N(0, I), 300 x 1,024", _encoder(lambda draw: draw(300, 1024))),
    _case(
        "power-law-0.7", HEALTHY, "eigenvalues j^-0.7", _encoder(lambda draw: power_law(draw, 1500, 96, 0.7))
    ),
    _case("power-law-1", HEALTHY, "eigenvalues j^-1", _encoder(lambda draw: power_law(draw, 2048, 256, 1.0))),
    _case(
        "ten-clusters",
        HEALTHY,
        "ten classes and what varies within",
        _encoder(lambda draw: clustered(draw, 1000, 64)),
    ),
    _case(
        "relu-big-mean",
        HEALTHY,
        "ReLU features, mean above deviation",
        _encoder(lambda draw: relu_with_mean(draw, 1024, 128)),
    ),
    _case(
        "sparse-relu",
        HEALTHY,
        "ReLU features, a tenth active",
        _encoder(lambda draw: sparse(draw, 1024, 128)),
    ),
    _case(
        "unit-sphere",
        HEALTHY,
        "uniform on the sphere",
        _encoder(lambda draw: F.normalize(draw(1024, 64), dim=1)),
    ),
    _case(
        "vit-tokens",
        HEALTHY,
        "LayerNormed tokens",
        _with_tokens(lambda draw: tokens_like_a_vit(draw, 256, 16, 64)),
    ),
    _case(
        "wandering-clips",
        HEALTHY,
        "clips that wander",
        _with_tokens(lambda draw: walk(draw, 256, 16, 64), "time"),
    ),
    _case("honest-predictor", HEALTHY, "half the motion predicted", _prediction(0.35, 0.2)),
    _case(
        "gaussian-big-mean",
        HEALTHY,
        "N(0, I) around a point three deviations away",
        _encoder(lambda draw: draw(1024, 64) + 3 * draw(1, 64).sign()),
    ),
    _case(
        "relu-shifted",
        HEALTHY,
        "ReLU features, a common offset of one deviation",
        _encoder(lambda draw: F.relu(draw(800, 96) + 0.5) + 1.0),
    ),
    _run(
        "settled-targets",
        HEALTHY,
        "targets grow fourfold in the first quarter of the run, then stay",
        _followed(lambda t: min(1.0, 0.25 + 3 * t)),
    ),
]
_BROKEN = [
    _case(
        "point",
        COMPLETE,
        "one point, exactly, far out",
        _encoder(lambda draw: 1e4 * draw(1, 96).expand(300, 96).clone()),
        constant("encoder"),
    ),
    _case("zeros", COMPLETE, "all zero", _encoder(lambda draw: torch.zeros(256, 128)), constant("encoder")),
    _case(
        "noise-floor",
        COMPLETE,
        "one point and isotropic noise of 1/1000: the highest centred rank of all",
        _encoder(lambda draw: draw(1, 64) + 1e-3 * draw(1024, 64)),
        constant("encoder"),
    ),
    _case("not-a-number", COMPLETE, "one sample in six NaN", _encoder(_nan), constant("encoder")),
    _case(
        "line",
        DIMENSIONAL,
        "a line, noise 0.1 of 32",
        _encoder(lambda draw: low_rank(draw, 700, 32, 1, 0.1)),
        narrow("encoder"),
    ),
    _case(
        "plane-128",
        DIMENSIONAL,
        "rank 4 of 128, noise 0.01",
        _encoder(lambda draw: low_rank(draw, 400, 128, 4, 0.01)),
        narrow("encoder"),
    ),
    _case(
        "power-law-3",
        DIMENSIONAL,
        "eigenvalues j^-3",
        _encoder(lambda draw: power_law(draw, 2000, 200, 3.0)),
        narrow("encoder"),
    ),
    _case(
        "repeated-dims",
        DIMENSIONAL,
        "four features, each sixteen times",
        _encoder(lambda draw: draw(1024, 4).repeat(1, 16)),
        narrow("encoder"),
    ),
    _case(
        "one-vector-a-picture",
        TOKEN,
        "tokens one vector, noise 0.05",
        _with_tokens(lambda draw: alike_within(draw, 256, 16, 64, 0.05)),
        alike("tokens"),
    ),
    _case(
        "equal-tokens",
        TOKEN,
        "tokens exactly equal",
        _with_tokens(lambda draw: alike_within(draw, 256, 49, 32, 0.0)),
        alike("tokens"),
    ),
    _case(
        "still-clips",
        TEMPORAL,
        "frames one vector, noise 0.1",
        _with_tokens(lambda draw: alike_within(draw, 200, 12, 48, 0.1), "time"),
        alike("time"),
    ),
    _case(
        "stopped-clips",
        TEMPORAL,
        "frames exactly equal",
        _with_tokens(lambda draw: alike_within(draw, 128, 8, 128, 0.0), "time"),
        alike("time"),
    ),
    _case("copied-frame", COPIES, "the last frame, noise 0.05", _prediction(1.0, 0.05), copies()),
    _case("nearly-copied", COPIES, "95 % the last frame", _prediction(0.95, 0.02), copies()),
    _run(
        "growing-targets",
        DRIFT,
        "targets grow a hundredfold, steadily",
        _followed(lambda t: 100.0**t),
        drifts(),
    ),
    _run(
        "shrinking-targets",
        DRIFT,
        "targets shrink to a hundredth, steadily",
        _followed(lambda t: 0.01**t),
        drifts(),
    ),
]
_UNCLEAR = [
    _case("eight-samples", TOO_FEW, "N(0, I), 8 x 64", _encoder(lambda draw: draw(8, 64)), few),
    _case(
        "twelve-samples",
        TOO_FEW,
        "ReLU features, 12 x 256",
        _encoder(lambda draw: relu_with_mean(draw, 12, 256)),
        few,
    ),
]
CASES = [*_HEALTHY, *_BROKEN, *_UNCLEAR]

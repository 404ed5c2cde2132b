"""The health figures of a training step: is the representation alive, and does the predictor predict?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from torchjepa.evaluation.spectrum import (
    attainable_rank,
    effective_rank,
    feature_std,
    mean_cosine,
    relative_error,
)

MAX_SAMPLES = 1024


def measure_health(features: Mapping[str, Tensor]) -> dict[str, float]:
    """Health figures of `Loss.features`, cheap enough for every logged step.

    `std` (mean standard deviation over the dimensions), `effective_rank` and the `max_rank` it could reach
    with this many samples, `mean_cosine` between samples; with `prediction` and `target` also
    `relative_error`, the error relative to predicting the mean target. Measured on at most 1024 rows, evenly
    spaced. Figures that are undefined (one sample, NaN features) are NaN.

    Args:
        features: `encoder` `[b, d]`, and where there is a predictor `prediction` and `target`, both `[n, d]`.

    Raises:
        ValueError: a tensor is not a matrix, or prediction and target differ in shape.
    """
    figures: dict[str, float] = {}
    if "encoder" in features:
        figures |= _spread(_rows(features["encoder"], "encoder"))
    if "prediction" in features and "target" in features:
        figures["relative_error"] = _error(
            _rows(features["prediction"], "prediction"), _rows(features["target"], "target")
        )
    return figures


def _spread(x: Tensor) -> dict[str, float]:
    nan = float("nan")
    defined = len(x) > 1
    return {
        "std": feature_std(x) if defined else nan,
        "effective_rank": effective_rank(x) if defined else nan,
        "max_rank": float(attainable_rank(*x.shape)),
        "mean_cosine": mean_cosine(x) if defined else nan,
    }


def _error(prediction: Tensor, target: Tensor) -> float:
    return relative_error(prediction, target) if len(target) > 1 else float("nan")


def _rows(features: Tensor, name: str) -> Tensor:
    if features.ndim != 2:
        raise ValueError(f"measure_health: {name} must be [n, d], got {tuple(features.shape)}.")
    n = features.shape[0]
    if n > MAX_SAMPLES:
        features = features[torch.arange(MAX_SAMPLES, device=features.device) * n // MAX_SAMPLES]
    return features.detach().to("cpu").double()

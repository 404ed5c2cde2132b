"""The health figures of a training step: is the representation alive, and does the predictor predict?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from torchjepa.evaluation.spectrum import (
    attainable_rank,
    covariance_spectrum,
    feature_std,
    mean_cosine,
    normalized_std,
    rank_of_spectrum,
    relative_error,
)
from torchjepa.evaluation.spectrum.matrix import even_rows

MAX_SAMPLES = 1024
_MAX_TOKENS = 16  # of each of at most 64 samples
_MAX_TOKEN_SAMPLES = 64


def measure_health(features: Mapping[str, Tensor]) -> dict[str, float]:
    """Health figures of `Loss.features`, cheap enough for every logged step.

    Of `encoder`: `std` (mean standard deviation over the dimensions), `effective_rank` and the `max_rank` it
    could reach with this many samples, `mean_cosine` between samples, `normalized_std` (spread of directions, 1
    at most) and `top_share` of the variance along the strongest direction. With `prediction` and `target`
    `relative_error`, the error relative to predicting the mean target, and `target_std`. With `tokens`
    `token_share`, the share of their variance within a sample; where `target_tokens` have the same shape
    `target_distance`, root mean square of the difference over that of the tokens. Measured on at most 1024
    rows (of tokens 16 of 64 samples), evenly spaced. Figures that are undefined (one sample, NaN features) are
    NaN.

    Args:
        features: `encoder` `[b, d]`, and where there are such `prediction` and `target`, both `[n, d]`, `tokens`
            and `target_tokens` `[b, n, d]`.

    Raises:
        ValueError: a tensor has another number of axes, or prediction and target differ in shape.
    """
    figures: dict[str, float] = {}
    if "encoder" in features:
        figures |= _spread(_rows(features["encoder"], "encoder"))
    if "prediction" in features and "target" in features:
        target = _rows(features["target"], "target")
        figures |= _error(_rows(features["prediction"], "prediction"), target)
    if "tokens" in features:
        figures |= _tokens(features["tokens"], features.get("target_tokens"))
    return figures


def _spread(x: Tensor) -> dict[str, float]:
    nan = float("nan")
    defined = len(x) > 1
    values = covariance_spectrum(x) if defined else torch.full((1,), nan)
    total = values.sum().item()
    return {
        "std": feature_std(x) if defined else nan,
        "effective_rank": rank_of_spectrum(values),
        "max_rank": float(attainable_rank(*x.shape)),
        "mean_cosine": mean_cosine(x) if defined else nan,
        "normalized_std": normalized_std(x) if defined else nan,
        "top_share": 0.0 if total == 0 else values[0].item() / total,
    }


def _error(prediction: Tensor, target: Tensor) -> dict[str, float]:
    if len(target) < 2:
        return {"relative_error": float("nan"), "target_std": float("nan")}
    return {"relative_error": relative_error(prediction, target), "target_std": feature_std(target)}


def _tokens(tokens: Tensor, target: Tensor | None) -> dict[str, float]:
    x = _some_tokens(tokens, "tokens")
    spread = (x - x.mean(dim=(0, 1))).square().sum()
    figures = {"token_share": ((x - x.mean(dim=1, keepdim=True)).square().sum() / spread).item()}
    if target is not None and target.shape == tokens.shape:
        apart = (_some_tokens(target, "target_tokens") - x).square().sum()
        figures["target_distance"] = (apart / x.square().sum()).sqrt().item()
    return figures


def _some_tokens(tokens: Tensor, name: str) -> Tensor:
    if tokens.ndim != 3:
        raise ValueError(f"measure_health: {name} must be [b, n, d], got {tuple(tokens.shape)}.")
    some = even_rows(even_rows(tokens.detach(), _MAX_TOKEN_SAMPLES).transpose(0, 1), _MAX_TOKENS)
    return some.transpose(0, 1).to("cpu").double()


def _rows(features: Tensor, name: str) -> Tensor:
    if features.ndim != 2:
        raise ValueError(f"measure_health: {name} must be [n, d], got {tuple(features.shape)}.")
    return even_rows(features.detach(), MAX_SAMPLES).to("cpu").double()

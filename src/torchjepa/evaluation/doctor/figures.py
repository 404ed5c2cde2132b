"""The doctor's figures of features: spread and rank, tokens and time, prediction and target."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from torchjepa.evaluation import spectrum
from torchjepa.evaluation.spectrum.matrix import even_rows

MAX_SAMPLES = 2048
_RANKED = ("encoder", "projector", "target")
_MIN_LAYERS = 8  # samples below which shares of variance are noise

Figures = dict[str, float]


def measure(features: Mapping[str, Tensor]) -> Figures:
    """Every figure that the features at hand allow, as `<feature>/<figure>`.

    Args:
        features: float64 tensors on the CPU by the names that `diagnose` takes.
    """
    figures = {f"{name}/non_finite_share": _non_finite_share(x) for name, x in features.items()}
    whole = _finite_rows(features)
    for name, x in whole.items():
        figures[f"{name}/num_samples"] = float(len(x))
        if x.ndim == 2:
            figures |= _prefixed(name, _spread(x) | (_rank(x) if name in _RANKED else {}))
        elif len(x):
            figures |= _prefixed(name, _layers(x))
    return figures | _predictor(whole) | _target(whole) | _views(whole)


def _non_finite_share(x: Tensor) -> float:
    return 1 - torch.isfinite(x).double().mean().item()


def _finite_rows(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Samples that are finite throughout; prediction, target and context lose the same ones."""
    keep = {name: torch.isfinite(x).flatten(1).all(dim=1) for name, x in features.items()}
    paired = [name for name in ("prediction", "target", "context") if name in features]
    if len({len(keep[name]) for name in paired}) == 1:
        together = torch.stack([keep[name] for name in paired]).all(dim=0)
        keep |= dict.fromkeys(paired, together)
    return {name: even_rows(x[keep[name]], MAX_SAMPLES) for name, x in features.items()}


def _spread(x: Tensor) -> Figures:
    """How far `[n, d]` spreads."""
    n, d = x.shape
    figures: Figures = {"dim": float(d), "attainable_rank": float(spectrum.attainable_rank(n, d))}
    if n < 2:
        return figures
    length = x.square().sum(dim=1).mean().item()
    return figures | {
        "std": spectrum.feature_std(x),
        "norm": x.norm(dim=1).mean().item(),
        "relative_std": math.sqrt(x.var(dim=0).sum().item() / length) if length > 0 else 0.0,
        "normalized_std": spectrum.normalized_std(x),
        "mean_cosine": spectrum.mean_cosine(x),
    }


def _rank(x: Tensor) -> Figures:
    """How many directions `[n, d]` uses."""
    n, d = x.shape
    if n < 2:
        return {}
    values = spectrum.covariance_spectrum(x)
    total, power = values.sum().item(), values.square().sum().item()
    attainable = spectrum.attainable_rank(n, d)
    rank = spectrum.rank_of_spectrum(values)
    holding = float((values.cumsum(0) < 0.95 * total).sum()) + 1 if total > 0 else 0.0
    alpha = spectrum.power_law_of_spectrum(values, attainable)
    return {
        "effective_rank": rank,
        "rank_share": rank / attainable,
        "rank_95": holding,
        "rank_95_share": holding / attainable,
        "participation_ratio": total**2 / power if power > 0 else 0.0,
        "top_share": values[0].item() / total if total > 0 else 0.0,
        "dead_share": spectrum.dead_dimensions(x) / d,
        "rankme": spectrum.rankme(x),
        "correlation": spectrum.mean_off_diagonal_correlation(x),
        "uniformity": spectrum.uniformity(x),
        "alpha": alpha.alpha,
        "alpha_r_squared": alpha.r_squared,
    }


def _layers(x: Tensor) -> Figures:
    """Where the variance of `[b, k, d]` lies: between samples, between places, or in what both make together.

    x_ik = m + sample_i + place_k + rest_ik, the components of a two-way analysis of variance without repeats
    (Searle et al. 1992), each unbiased and not below 0, as shares of their sum.
    """
    b, k, d = x.shape
    figures = {"dim": float(d), "length": float(k)}
    if b < _MIN_LAYERS or k < 2:
        return figures
    sample, place = x.mean(dim=1, keepdim=True), x.mean(dim=0, keepdim=True)
    mean = sample.mean(dim=0, keepdim=True)
    rest = (x - sample - place + mean).square().mean().item() * b * k / ((b - 1) * (k - 1))
    parts = {
        "sample_share": max(0.0, (sample - mean).square().mean().item() * b / (b - 1) - rest / k),
        "place_share": max(0.0, (place - mean).square().mean().item() * k / (k - 1) - rest / b),
        "rest_share": rest,
    }
    total = sum(parts.values())
    shares = {name: part / total if total > 0 else 0.0 for name, part in parts.items()}
    content = shares["sample_share"] + shares["rest_share"]
    length = x.square().mean().item()
    return (
        figures
        | shares
        | {
            "content_share": content,
            "within_share": shares["rest_share"] / content if content > 0 else 0.0,
            "relative_std": math.sqrt(total / length) if length > 0 else 0.0,
        }
    )


def _predictor(features: Mapping[str, Tensor]) -> Figures:
    """Prediction against target, the mean target and the copied context."""
    prediction, target, context = (features.get(name) for name in ("prediction", "target", "context"))
    if prediction is None or target is None or prediction.shape != target.shape or len(target) < 2:
        return {}
    figures = {"predictor/relative_error": spectrum.relative_error(prediction, target)}
    if context is not None and context.shape == target.shape:
        moved = (target - context).square().sum()
        figures["predictor/copy_error"] = spectrum.relative_error(context, target)
        figures["predictor/motion"] = ((prediction - context).square().sum() / moved).item()
        figures["predictor/error_against_copy"] = ((prediction - target).square().sum() / moved).item()
    return figures


def _target(features: Mapping[str, Tensor]) -> Figures:
    """Target network against the online one."""
    online, target = features.get("tokens"), features.get("target_tokens")
    if online is None or target is None or not len(online) or not len(target):
        return {}
    scale = online.square().mean().sqrt()
    figures = {"target/scale_ratio": (target.square().mean().sqrt() / scale).item()}
    if online.shape == target.shape:
        figures["target/distance"] = ((target - online).square().mean().sqrt() / scale).item()
    return figures


def _views(features: Mapping[str, Tensor]) -> Figures:
    """Several views of each sample: `[n, q, d]`."""
    views = features.get("views")
    if views is None or views.shape[0] < 2 or views.shape[1] < 2:
        return {}
    return {
        "views/lidar": spectrum.lidar(views),
        "views/alignment": spectrum.alignment(views[:, 0], views[:, 1]),
    }


def _prefixed(name: str, figures: Figures) -> Figures:
    return {f"{name}/{figure}": value for figure, value in figures.items()}

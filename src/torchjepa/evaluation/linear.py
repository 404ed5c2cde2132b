"""The linear probe: multinomial logistic regression on frozen, standardised features."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchjepa.evaluation.features import Features
from torchjepa.evaluation.neighbours import require_finite
from torchjepa.rng import generator

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_SELECTION_SAMPLES = 5_000  # enough to rank five strengths, few enough to fit them on raw pixels too
_SELECTION_ITERATIONS = 100
_DEAD_STD = 1e-6  # relative to the mean: less is rounding, not signal


@dataclass(frozen=True)
class LinearProbe:
    """A fitted linear classifier; label(x) = classes[argmax(x W + b)].

    Args:
        weight: `[d, c]`, acting on raw features: the standardisation is folded in.
        bias: `[c]`.
        classes: label of each column, int64 `[c]`.
        strength: the chosen C, the prior variance of a weight on standardised features.
        converged: whether the final fit met its tolerance within the iterations allowed.
    """

    weight: Tensor
    bias: Tensor
    classes: Tensor
    strength: float
    converged: bool

    def predict(self, features: Tensor) -> Tensor:
        """Labels, int64 `[n]`, of features `[n, d]`."""
        return self.classes[(features.double() @ self.weight + self.bias).argmax(dim=1)]


def fit_linear(train: Features, *, strengths: Sequence[float] = STRENGTHS, seed: int = 0) -> LinearProbe:
    """Fit a linear probe; its strength C is chosen on a fifth of the training samples, never on test data.

    min_W,b of C * sum_i cross-entropy(x_i W + b, y_i) + |W|^2 / 2, x standardised to mean 0 and standard
    deviation 1 over the training samples; features that never vary are left out. C is chosen on at most
    5,000 training samples (4/5 fit, 1/5 held out), then everything is fitted once, by at most 1,000 L-BFGS
    iterations (200 where n * d is large). A function of the features and the seed alone.

    Args:
        train: the labelled samples; those without a label are left out.
        strengths: the values of C to try; the smallest wins a tie.
        seed: which samples are held out.

    Raises:
        ValueError: no training sample has a label, a feature is not finite, or `strengths` is empty or not
            positive.
    """
    if not strengths or min(strengths) <= 0:
        raise ValueError(f"fit_linear: strengths must be positive values of C, got {tuple(strengths)}.")
    train = train.labelled
    if len(train) == 0:
        raise ValueError(
            "linear probe: no training sample has a label (all are -1); there is nothing to fit."
        )
    require_finite(train.features, "linear probe")
    classes, columns = train.labels.unique(return_inverse=True)
    x, mean, scale = _standardise(train.features)
    y = columns.numpy()
    if len(classes) == 1 or not scale.any():
        return _constant(classes, y, train.features.shape[1], min(strengths))
    strength = _choose(x, y, sorted(strengths), seed)
    model, converged = _fit(x, y, strength, _iterations(x.size))
    weight, bias = _unfold(model, mean, scale)
    return LinearProbe(weight, bias, classes, strength, converged)


def linear_accuracy(
    train: Features,
    test: Features,
    *,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
) -> float:
    """Share of test samples that a linear probe on frozen features gets right, 0 to 1.

    Args:
        train: the samples to fit on.
        test: the samples that are judged; in both, those without a label are left out.
        strengths: the values of C to choose from, on a part of `train`.
        seed: which samples of `train` are held out for that choice.
        tell: receives a sentence when the fit stopped before it converged.

    Raises:
        ValueError: train or test has no label, the widths differ, or a feature is not finite.
    """
    test = test.labelled
    if len(test) == 0:
        raise ValueError("linear probe: no test sample has a label (all are -1); there is nothing to judge.")
    if test.features.shape[1] != train.features.shape[1]:
        raise ValueError(
            f"linear probe: train has {train.features.shape[1]} features and test {test.features.shape[1]}."
        )
    require_finite(test.features, "linear probe")
    probe = fit_linear(train, strengths=strengths, seed=seed)
    if tell is not None and not probe.converged:
        tell(f"linear probe: the fit stopped before it converged (C = {probe.strength:g}).")
    return (probe.predict(test.features) == test.labels).double().mean().item()


def _standardise(features: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    # One copy and no other of its size: raw pixels of 50,000 pictures take 600 MB. scale is 1 / std, 0 for a
    # feature that never varies, which thereby becomes the constant 0.
    mean = features.mean(dim=0)
    x = features - mean
    std = torch.stack([rows.square().sum(dim=0) for rows in x.split(4096)]).sum(dim=0).div(len(x)).sqrt()
    scale = torch.where(std > _DEAD_STD * mean.abs(), 1.0 / std, 0.0)
    return x.mul_(scale).numpy(), mean.double().numpy(), scale.double().numpy()


def _choose(x: NDArray[np.float32], y: NDArray[np.int64], strengths: Sequence[float], seed: int) -> float:
    rows = torch.randperm(len(x), generator=generator(seed, "linear-probe"))[:_SELECTION_SAMPLES].numpy()
    held, fitted = np.split(rows, [len(rows) // 5])
    if len(strengths) == 1 or len(held) == 0 or len(np.unique(y[fitted])) < 2:
        return strengths[len(strengths) // 2]
    accuracies = [
        _fit(x[fitted], y[fitted], c, _SELECTION_ITERATIONS)[0].score(x[held], y[held]) for c in strengths
    ]
    return strengths[int(np.argmax(accuracies))]


def _iterations(size: int) -> int:
    # So that the final fit ends within a minute on two cores: 200 for 50,000 x 3,072 pixels.
    return max(200, min(1000, 10**10 // size))


def _fit(x: NDArray[np.float32], y: NDArray[np.int64], strength: float, iterations: int) -> tuple[Any, bool]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=iterations, tol=1e-4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, y)
    converged = not any(issubclass(each.category, ConvergenceWarning) for each in caught)
    return model, converged


def _unfold(model: Any, mean: NDArray[np.float64], scale: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    weight, bias = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
    if len(weight) == 1:  # two classes: scikit-learn keeps the one log-odds
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    weight = weight * scale
    return torch.from_numpy(weight.T.copy()), torch.from_numpy(bias - weight @ mean)


def _constant(classes: Tensor, y: NDArray[np.int64], dim: int, strength: float) -> LinearProbe:
    # Nothing to separate, or nothing to separate it with: the most frequent class.
    bias = torch.from_numpy(np.bincount(y, minlength=len(classes)).astype(np.float64))
    return LinearProbe(torch.zeros(dim, len(classes), dtype=torch.float64), bias, classes, strength, True)

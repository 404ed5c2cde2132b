"""Spectra and health figures against float64 NumPy, known answers and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchjepa.evaluation import (
    attainable_rank,
    covariance_spectrum,
    effective_rank,
    feature_std,
    mean_cosine,
    measure_health,
    relative_error,
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rank_slowly(x: np.ndarray) -> float:
    x = x.astype(np.float64)
    sigma = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    p = sigma / sigma.sum()
    return math.exp(-sum(float(q) * math.log(q) for q in p if q > 0))


def cosine_slowly(x: np.ndarray) -> float:
    values = [
        float(x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]))
        for i in range(len(x))
        for j in range(len(x))
        if i != j
    ]
    return sum(values) / len(values)


@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (2, 5), (12, 12)])
def test_figures_are_those_of_plain_numpy(shape):
    x = randn(*shape) * torch.linspace(0.1, 3, shape[1]) + 0.5
    wide = x.double().numpy()
    wanted = np.linalg.eigvalsh(np.cov(wide, rowvar=False))[::-1].clip(0)
    np.testing.assert_allclose(covariance_spectrum(x).numpy(), wanted, atol=1e-10)
    assert effective_rank(x) == pytest.approx(rank_slowly(wide), rel=1e-5)
    assert feature_std(x) == pytest.approx(wide.std(axis=0, ddof=1).mean(), rel=1e-9)
    assert mean_cosine(x) == pytest.approx(cosine_slowly(wide), abs=1e-9)


def test_known_ranks():
    square = torch.cat([torch.eye(8), -torch.eye(8)])
    assert effective_rank(square) == pytest.approx(8, rel=1e-9)
    line = torch.linspace(-1, 1, 50)[:, None] * randn(1, 64) + 100
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.full((9, 5), 0.1)) == 0
    # sigma = (2, 1, 1): p = (1/2, 1/4, 1/4), entropy 1.5 ln 2.
    three = torch.cat([torch.diag(torch.tensor([2.0, 1, 1])), -torch.diag(torch.tensor([2.0, 1, 1]))])
    assert effective_rank(three) == pytest.approx(2**1.5, rel=1e-9)
    assert [attainable_rank(5, 3), attainable_rank(3, 5), attainable_rank(0, 5)] == [3, 2, 0]


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 20), d=st.integers(1, 20), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 999))
def test_rank_is_bounded_and_blind_to_scale_and_shift(n, d, scale, seed):
    x = randn(n, d, seed=seed).double()
    rank = effective_rank(x)
    assert 1 - 1e-9 <= rank <= attainable_rank(n, d) + 1e-6
    assert effective_rank(x * scale + 3) == pytest.approx(rank, rel=1e-4)


def test_cosine_of_copies_is_one_and_of_opposites_is_minus_one():
    assert mean_cosine(randn(1, 9).repeat(30, 1)) == pytest.approx(1, abs=1e-9)
    assert mean_cosine(torch.tensor([[1.0, 2.0], [-2.0, -4.0]])) == pytest.approx(-1, abs=1e-9)
    # (u, u, 0): of six ordered pairs two have cosine 1.
    assert mean_cosine(torch.tensor([[1.0, 0], [3.0, 0], [0, 0]])) == pytest.approx(1 / 3, abs=1e-9)


def test_relative_error_is_one_for_the_mean_target():
    target = randn(30, 4) + 5
    assert relative_error(target.mean(dim=0).expand(30, 4), target) == pytest.approx(1, rel=1e-6)
    assert relative_error(target, target) == 0
    p, t = randn(30, 4, seed=1).double().numpy(), target.double().numpy()
    wanted = sum((p[i, j] - t[i, j]) ** 2 for i in range(30) for j in range(4)) / (30 * t.var(axis=0).sum())
    assert relative_error(torch.from_numpy(p), target) == pytest.approx(wanted, rel=1e-9)
    assert math.isnan(relative_error(target, torch.ones(30, 4)))


def test_health_has_the_agreed_figures():
    features = {"encoder": randn(50, 8), "prediction": randn(90, 8, seed=1), "target": randn(90, 8, seed=2)}
    figures = measure_health(features)
    spread = ["std", "effective_rank", "max_rank", "mean_cosine", "normalized_std", "top_share"]
    assert list(figures) == [*spread, "relative_error", "target_std"]
    assert figures["std"] == pytest.approx(feature_std(features["encoder"]))
    assert figures["effective_rank"] == pytest.approx(effective_rank(features["encoder"]))
    assert figures["max_rank"] == 8
    assert figures["relative_error"] == pytest.approx(
        relative_error(features["prediction"], features["target"])
    )
    assert "relative_error" not in measure_health({"encoder": randn(50, 8)})
    assert measure_health({}) == {}
    assert measure_health({"encoder": randn(6, 8)})["max_rank"] == 5


def test_health_measures_at_most_1024_rows_evenly_spaced_and_paired():
    x = randn(3000, 4)
    rows = [i * 3000 // 1024 for i in range(1024)]
    figures = measure_health({"encoder": x, "prediction": x + 1, "target": x})
    assert figures["std"] == pytest.approx(feature_std(x[rows]))
    assert figures["relative_error"] == pytest.approx(relative_error(x[rows] + 1, x[rows]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_gives_nan_and_no_crash(value):
    x = randn(20, 6)
    x[3, 2] = value
    figures = measure_health({"encoder": x, "prediction": x, "target": x})
    assert figures.pop("max_rank") == 6
    assert not any(math.isfinite(figure) for figure in figures.values())
    assert covariance_spectrum(x).isnan().all()


def test_one_sample_has_no_spread():
    figures = measure_health({"encoder": randn(1, 6), "prediction": randn(1, 6), "target": randn(1, 6)})
    assert figures.pop("max_rank") == 0
    assert all(math.isnan(figure) for figure in figures.values())


def test_half_precision_is_measured_in_float64():
    x = (randn(100, 5) + 100).bfloat16()
    assert feature_std(x) == pytest.approx(x.double().std(dim=0).mean().item(), rel=1e-12)


def test_refusals_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"effective_rank|covariance_spectrum: features must be \[n, d\]"):
        effective_rank(torch.zeros(3))
    with pytest.raises(ValueError, match=r"at least 2, got \(1, 4\)"):
        mean_cosine(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"prediction \(4, 3\) and target \(4, 2\) must have one shape"):
        relative_error(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"measure_health: encoder must be \[n, d\], got \(2, 3, 4\)"):
        measure_health({"encoder": torch.zeros(2, 3, 4)})

"""The figures of a spectrum against known answers, plain loops and float64 NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchjepa.evaluation import (
    alignment,
    alpha_req,
    dead_dimensions,
    effective_rank,
    lidar,
    mean_off_diagonal_correlation,
    normalized_std,
    participation_ratio,
    rankme,
    top_share,
    uniformity,
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def with_spectrum(eigenvalues: torch.Tensor, n: int) -> torch.Tensor:
    """Features whose covariance has exactly these eigenvalues, in a random basis."""
    d = len(eigenvalues)
    x = randn(n, d, seed=1)
    q, _ = torch.linalg.qr(x - x.mean(dim=0))
    basis, _ = torch.linalg.qr(randn(d, d, seed=2))
    return q * (eigenvalues * (n - 1)).sqrt() @ basis.T


def test_rankme_keeps_the_mean_and_adds_eps():
    x = (randn(30, 6) + 3).numpy()
    sigma = np.linalg.svd(x, compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    assert rankme(torch.from_numpy(x)) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-9)
    assert rankme(torch.from_numpy(x.T.copy())) == pytest.approx(rankme(torch.from_numpy(x)), rel=1e-6)
    assert rankme(torch.zeros(4, 3)) == 0
    assert rankme(torch.eye(8), eps=0) == pytest.approx(8, rel=1e-9)


def test_what_is_left_of_a_constant_is_noise_that_only_rankme_sees_through():
    lie = randn(1, 64) + 1e-4 * randn(512, 64, seed=3)
    assert effective_rank(lie) > 60
    assert rankme(lie) < 1.2
    assert normalized_std(lie) < 1e-3


def test_participation_ratio_and_top_share_of_a_known_spectrum():
    x = with_spectrum(torch.tensor([4.0, 2, 1, 1, 0, 0]).double(), 20)
    assert participation_ratio(x) == pytest.approx(8**2 / (16 + 4 + 1 + 1), rel=1e-9)
    assert top_share(x) == pytest.approx(0.5, rel=1e-9)
    assert participation_ratio(torch.ones(5, 3)) == top_share(torch.ones(5, 3)) == 0


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("fit_range", [None, (2, 30), (1, 64)])
def test_alpha_of_an_exact_power_law(alpha, fit_range):
    x = with_spectrum(torch.arange(1, 65).double().pow(-alpha), 200)
    fit = alpha_req(x, fit_range)
    assert fit.alpha == pytest.approx(alpha, abs=1e-6)
    assert alpha == 0 or fit.r_squared == pytest.approx(1, abs=1e-6)
    assert (fit.first, fit.last) == (fit_range or (4, 32))


def test_alpha_fits_the_range_alone_and_says_how_well():
    values = torch.arange(1, 65).double().pow(-1.0)
    values[:3] *= 1000
    values[40:] = 1e-5
    assert alpha_req(with_spectrum(values, 200)).alpha == pytest.approx(1, abs=1e-6)
    assert alpha_req(with_spectrum(values, 200), (1, 64)).r_squared < 0.95
    wide = values.numpy()[1:50]
    slope = np.polyfit(np.log(np.arange(2, 51)), np.log(wide), 1)[0]
    assert alpha_req(with_spectrum(values, 200), (2, 50)).alpha == pytest.approx(-slope, rel=1e-6)


def test_alpha_stops_at_rounding_and_is_nan_without_a_spectrum():
    low = randn(100, 6) @ randn(6, 64, seed=4)
    assert alpha_req(low).last == 6
    assert math.isnan(alpha_req(torch.ones(9, 5)).alpha)
    assert math.isnan(alpha_req(randn(100, 1) @ randn(1, 64)).alpha)
    assert alpha_req(randn(2, 5, seed=7)).last <= 2
    with pytest.raises(ValueError, match=r"1 <= first < last <= 5, got \(3, 6\)"):
        alpha_req(randn(20, 5), (3, 6))


def lidar_slowly(z: np.ndarray, delta: float, eps: float) -> float:
    n, q, d = z.shape
    mu = z.mean(axis=1)
    s_b = sum(np.outer(mu[i] - mu.mean(0), mu[i] - mu.mean(0)) for i in range(n)) / (n - 1)
    s_w = sum(np.outer(z[i, j] - mu[i], z[i, j] - mu[i]) for i in range(n) for j in range(q)) / (n * (q - 1))
    values, vectors = np.linalg.eigh(s_w + delta * np.eye(d))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    lam = np.clip(np.linalg.eigvalsh(root @ s_b @ root), 0, None)
    p = lam / lam.sum() + eps
    return math.exp(-(p * np.log(p)).sum())


@pytest.mark.parametrize("shape", [(30, 4, 6), (5, 3, 12), (2, 2, 1)])
def test_lidar_is_that_of_the_plain_formula(shape):
    z = randn(shape[0], 1, shape[2]) + 0.3 * randn(*shape, seed=5)
    assert lidar(z) == pytest.approx(lidar_slowly(z.numpy(), 1e-4, 1e-8), rel=1e-5)
    assert lidar(z, 0.1, 1e-3) == pytest.approx(lidar_slowly(z.numpy(), 0.1, 1e-3), rel=1e-5)


def test_lidar_of_closed_form_cases():
    # Views that agree: S_w = delta I, so l is the spectrum of the means, 4:2:1:1.
    means = with_spectrum(torch.tensor([4.0, 2, 1, 1]).double(), 20)
    p = torch.tensor([4.0, 2, 1, 1]).double() / 8
    assert lidar(means[:, None].expand(-1, 3, -1)) == pytest.approx(
        math.exp(torch.special.entr(p).sum()), rel=1e-5
    )
    # Noise in one direction takes that one out of the count.
    noisy = torch.cat([torch.eye(3), -torch.eye(3)]).double()[:, None].repeat(1, 2, 1)
    noisy[:, 0, 0] += 1e4
    noisy[:, 1, 0] -= 1e4
    assert lidar(noisy) == pytest.approx(2, rel=1e-3)
    assert lidar(torch.ones(4, 2, 3)) == 0


def test_dead_dimensions_are_counted_against_the_others():
    x = randn(50, 10)
    x[:, :3] *= 1e-3
    x[:, 3] = 7
    assert dead_dimensions(x) == dead_dimensions(x * 1e-6) == 4
    assert dead_dimensions(x, threshold=1e-5) == 1
    assert dead_dimensions(torch.ones(5, 3)) == 3


def test_correlation_of_known_dimensions():
    a, b = randn(40, 2).T
    b = b - (b @ (a - a.mean())) / ((a - a.mean()) @ (a - a.mean())) * (a - a.mean())
    x = torch.stack([a, -2 * a + 1, b, torch.full_like(a, 3)], dim=1)
    assert mean_off_diagonal_correlation(x) == pytest.approx(
        1 / 3, abs=1e-9
    )  # one pair of three, the constant out
    wide = randn(12, 700).numpy()
    corr = np.abs(np.corrcoef(wide, rowvar=False))
    expected = (corr.sum() - 700) / (700 * 699)
    assert mean_off_diagonal_correlation(torch.from_numpy(wide)) == pytest.approx(expected, rel=1e-9)
    assert math.isnan(mean_off_diagonal_correlation(torch.ones(5, 3)))


def test_alignment_and_uniformity_of_known_directions():
    a = torch.tensor([[1.0, 0], [0, 2]])
    b = torch.tensor([[0, 3.0], [0, 1]])
    assert alignment(a, b) == pytest.approx(1)  # distances sqrt 2 and 0, squared, halved
    assert alignment(a, b, power=1) == pytest.approx(math.sqrt(2) / 2)
    assert uniformity(a) == pytest.approx(-4, abs=1e-9)  # one pair at squared distance 2, t = 2
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-9)
    assert uniformity(torch.tensor([[1.0], [-1.0]]), t=100) == pytest.approx(-400)
    z = torch.nn.functional.normalize(randn(700, 4), dim=1).numpy()
    pairs = [((z[i] - z[j]) ** 2).sum() for i in range(0, 700) for j in range(i)]
    assert uniformity(torch.from_numpy(z)) == pytest.approx(
        math.log(np.exp(-2 * np.array(pairs)).mean()), rel=1e-9
    )


def test_normalized_std_is_the_spread_of_directions():
    x = randn(200, 16)
    units = (x / x.norm(dim=1, keepdim=True)).numpy()
    assert normalized_std(x) == pytest.approx(math.sqrt(units.var(axis=0, ddof=1).sum()), rel=1e-9)
    assert normalized_std(x * torch.rand(200, 1).double()) == pytest.approx(normalized_std(x), rel=1e-9)
    assert normalized_std(torch.zeros(5, 4)) == 0


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 20), d=st.integers(2, 20), scale=st.floats(1e-6, 1e6), seed=st.integers(0, 999))
def test_no_figure_of_shape_sees_scale_or_rotation(n, d, scale, seed):
    x = randn(n, d, seed=seed) + 1
    basis, _ = torch.linalg.qr(randn(d, d, seed=seed + 1))
    for figure in (rankme, participation_ratio, top_share, normalized_std, uniformity):
        assert figure(scale * x @ basis) == pytest.approx(figure(x), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(
    "figure",
    [
        rankme,
        participation_ratio,
        top_share,
        alpha_req,
        dead_dimensions,
        mean_off_diagonal_correlation,
        uniformity,
    ],
)
def test_refusals_say_what_is_wrong(figure):
    name = figure.__name__
    x = randn(9, 4)
    x[2, 1] = math.nan
    with pytest.raises(ValueError, match=f"{name}: 1 of 36 values are NaN or infinite"):
        figure(x)
    with pytest.raises(ValueError, match=r"features must be \[n, d\] with n at least 2, got \(1, 4\)"):
        figure(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=f"{name}: features must be floating point, got torch.int64"):
        figure(torch.zeros(9, 4, dtype=torch.int64))


def test_refusals_of_several_views():
    with pytest.raises(ValueError, match=r"\[n, q, d\], q views .* got \(3, 1, 2\)"):
        lidar(torch.zeros(3, 1, 2))
    with pytest.raises(ValueError, match=r"delta must be positive, got 0"):
        lidar(torch.zeros(3, 2, 2), delta=0)
    with pytest.raises(ValueError, match=r"z_a \(4, 3\) and z_b \(4, 2\) must have one shape"):
        alignment(torch.zeros(4, 3), torch.zeros(4, 2))

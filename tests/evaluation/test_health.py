"""The figures of every logged step: what is in them, and that they are those of the pure functions."""

from __future__ import annotations

import math

import pytest
import torch

from torchjepa.evaluation import feature_std, measure_health, normalized_std, top_share


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_spread_of_directions_top_share_and_target():
    x, target = randn(60, 8) + 1, randn(90, 8, seed=1)
    figures = measure_health({"encoder": x, "prediction": target, "target": target})
    assert figures["normalized_std"] == pytest.approx(normalized_std(x))
    assert figures["top_share"] == pytest.approx(top_share(x))
    assert figures["target_std"] == pytest.approx(feature_std(target))


def test_tokens_share_and_distance_to_the_target_network():
    tokens = randn(32, 1, 8) + 0.1 * randn(32, 9, 8, seed=1)
    figures = measure_health({"tokens": tokens, "target_tokens": 2 * tokens})
    x = tokens.double()
    within = (x - x.mean(dim=1, keepdim=True)).square().sum() / (x - x.mean(dim=(0, 1))).square().sum()
    assert figures["token_share"] == pytest.approx(within.item())
    assert figures["target_distance"] == pytest.approx(1)
    assert "target_distance" not in measure_health({"tokens": tokens, "target_tokens": tokens[:, :4]})


def test_many_tokens_are_thinned_evenly():
    tokens = randn(200, 40, 4)
    rows = tokens[[i * 200 // 64 for i in range(64)]][:, [i * 40 // 16 for i in range(16)]]
    assert measure_health({"tokens": tokens}) == pytest.approx(measure_health({"tokens": rows}))


def test_a_constant_and_what_is_not_finite_are_no_crash():
    figures = measure_health({"encoder": torch.ones(9, 4), "tokens": torch.ones(9, 3, 4)})
    assert figures["normalized_std"] == figures["top_share"] == figures["effective_rank"] == 0
    assert math.isnan(figures["token_share"])
    tokens = randn(9, 3, 4)
    tokens[0, 0, 0] = math.inf
    assert math.isnan(measure_health({"tokens": tokens})["token_share"])


def test_a_token_matrix_is_refused():
    with pytest.raises(ValueError, match=r"measure_health: tokens must be \[b, n, d\], got \(9, 4\)"):
        measure_health({"tokens": torch.ones(9, 4)})

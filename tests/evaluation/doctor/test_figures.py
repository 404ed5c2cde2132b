"""The doctor's figures of features and of a history, against what the sets were drawn with."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.evaluation.doctor.sets import history, randn, tokens
from torchjepa.evaluation import diagnose, lidar, rankme


def test_shares_of_variance_are_those_drawn():
    figures = diagnose({"tokens": tokens(b=400, k=40, d=64, sample=1, place=2, rest=0.5)}).figures
    for name, share in {"sample": 1 / 5.25, "place": 4 / 5.25, "rest": 0.25 / 5.25}.items():
        assert figures[f"tokens/{name}_share"] == pytest.approx(share, rel=0.05)
    assert figures["tokens/within_share"] == pytest.approx(0.2, rel=0.05)
    assert figures["tokens/content_share"] == pytest.approx(1.25 / 5.25, rel=0.05)


@pytest.mark.parametrize("k", [2, 3, 16])
def test_shares_of_few_independent_tokens_are_unbiased(k):
    figures = diagnose({"tokens": randn(500, k, 32)}).figures
    assert figures["tokens/within_share"] == pytest.approx(1, abs=0.02)


def test_few_samples_or_one_token_give_no_shares():
    assert "tokens/within_share" not in diagnose({"tokens": tokens(b=7)}).figures
    assert "tokens/within_share" not in diagnose({"tokens": tokens(k=1)}).figures


def test_spread_and_rank_are_those_of_plain_numpy():
    x = (randn(300, 12) * torch.linspace(0.1, 2, 12) + 1).double().numpy()
    figures = diagnose(x).figures
    values = np.linalg.eigvalsh(np.cov(x, rowvar=False))[::-1]
    shares = values.cumsum() / values.sum()
    assert figures["encoder/relative_std"] == pytest.approx(math.sqrt(values.sum() / (x**2).sum(1).mean()))
    assert figures["encoder/rank_95"] == next(i for i in range(12) if shares[i] >= 0.95) + 1
    assert figures["encoder/top_share"] == pytest.approx(shares[0])
    assert figures["encoder/participation_ratio"] == pytest.approx(values.sum() ** 2 / (values**2).sum())
    assert figures["encoder/rankme"] == pytest.approx(rankme(torch.from_numpy(x)))
    assert figures["encoder/attainable_rank"] == 12
    assert figures["encoder/norm"] == pytest.approx(np.linalg.norm(x, axis=1).mean())


def test_the_predictor_is_measured_against_the_mean_and_the_copy():
    target, context = randn(200, 8).double(), randn(200, 8, seed=1).double()
    prediction = context + 0.25 * (target - context)
    figures = diagnose({"prediction": prediction, "target": target, "context": context}).figures
    spread = (target - target.mean(0)).square().sum()
    moved = (target - context).square().sum()
    assert figures["predictor/motion"] == pytest.approx(1 / 16)
    assert figures["predictor/error_against_copy"] == pytest.approx(9 / 16)
    assert figures["predictor/copy_error"] == pytest.approx((moved / spread).item())
    assert figures["predictor/relative_error"] == pytest.approx((9 / 16 * moved / spread).item())


def test_target_network_and_views_are_measured():
    x, views = tokens(), randn(40, 1, 6) + 0.1 * randn(40, 3, 6, seed=1)
    figures = diagnose({"tokens": x, "target_tokens": 3 * x, "views": views}).figures
    assert figures["target/scale_ratio"] == pytest.approx(3)
    assert figures["target/distance"] == pytest.approx(2)
    assert figures["views/lidar"] == pytest.approx(lidar(views))
    assert "target/distance" not in diagnose({"tokens": x, "target_tokens": x[:, :4]}).figures


def test_a_history_is_measured_at_its_end():
    rows = history(400, every=20, warmup=20, health_std=0.01, loss=0.1, health_effective_rank=0.5)
    rows[-2]["loss"] = 5.0  # one row out of line does not move the median of three
    figures = diagnose(randn(64, 4), history=rows).figures
    assert figures["history/steps"] == 381
    assert figures["history/lr_rising"] == 0
    assert figures["history/std_ratio"] == pytest.approx(0.01 ** (18 / 19))
    assert figures["history/rank_ratio"] == pytest.approx(0.5 ** (18 / 19))
    assert figures["history/loss_ratio"] == pytest.approx(0.1 ** (17 / 19) / 0.1)
    assert "history/relative_error" not in figures
    assert diagnose(randn(64, 4), history=[{"loss": 1.0}] * 80).figures["history/steps"] == 80


def test_targets_drift_only_where_there_are_targets():
    assert "history/target_std_ratio" not in diagnose(randn(64, 4), history=history(health_std=9.0)).figures
    rows = history(health_std=1e-2, health_target_std=4.0)
    assert diagnose(randn(64, 4), history=rows).figures["history/target_std_ratio"] == pytest.approx(
        4 ** (8 / 19)
    )

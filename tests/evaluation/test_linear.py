"""The linear probe, against scikit-learn's own pipeline; what it must bear and what it refuses."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tests.evaluation.test_knn import blobs
from torchjepa.evaluation import Features, fit_linear, linear_accuracy


def theirs(train: Features, strength: float) -> tuple[StandardScaler, LogisticRegression]:
    scaler = StandardScaler().fit(train.features.double().numpy())
    model = LogisticRegression(C=strength, max_iter=5000, tol=1e-8)
    model.fit(scaler.transform(train.features.double().numpy()), train.labels.numpy())
    return scaler, model


@pytest.mark.parametrize("num_classes", [2, 5])
def test_decisions_are_those_of_scikit_learn_in_float64(num_classes):
    train = blobs(400, num_classes=num_classes)
    train = Features(train.features * torch.linspace(0.01, 100, 16) + 30, train.labels + 3, train.ids)
    probe = fit_linear(train, strengths=[0.1])
    scaler, model = theirs(train, 0.1)
    ours = (train.features.double() @ probe.weight + probe.bias).numpy()
    wanted = model.decision_function(scaler.transform(train.features.double().numpy()))
    wanted = np.stack([0 * wanted, wanted], axis=1) if num_classes == 2 else wanted
    np.testing.assert_allclose(
        ours - ours.mean(1, keepdims=True), wanted - wanted.mean(1, keepdims=True), atol=0.02
    )
    agree = probe.predict(train.features).numpy() == model.predict(
        scaler.transform(train.features.double().numpy())
    )
    assert agree.mean() > 0.99
    assert probe.classes.tolist() == list(range(3, 3 + num_classes))


def test_the_strength_is_chosen_on_training_samples_only():
    # Noise in all but two of 200 dimensions: little regularisation overfits, which held-out samples show.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 200, generator=generator)
    y = (x[:, 0] + 0.5 * x[:, 1] + 0.5 * torch.randn(300, generator=generator) > 0).long()
    train = Features(x, y, torch.arange(300))
    assert fit_linear(train, strengths=[1e-3, 100.0]).strength == 1e-3
    test = Features(torch.randn(50, 200, generator=generator), torch.zeros(50).long(), torch.arange(50))
    flipped = Features(test.features, 1 - test.labels, test.ids)
    assert linear_accuracy(train, test) == pytest.approx(1 - linear_accuracy(train, flipped))


def test_it_is_a_function_of_features_and_seed():
    train = blobs(200)
    first, second = fit_linear(train, seed=3), fit_linear(train, seed=3)
    assert torch.equal(first.weight, second.weight)
    assert first.strength == second.strength
    train_before = train.features.clone()
    fit_linear(train)
    assert torch.equal(train.features, train_before)


def test_dead_features_change_nothing_and_far_means_do_no_harm():
    train, test = blobs(300), blobs(100, seed=1)
    wanted = linear_accuracy(train, test)

    def widened(part: Features) -> Features:
        dead = torch.full((len(part), 3), 1e4)
        dead[:, 1] = 0.1  # 0.1 is no float32: its mean must not leave a remainder that is blown up
        return Features(torch.cat([part.features + 50, dead], dim=1), part.labels, part.ids)

    assert linear_accuracy(widened(train), widened(test)) == pytest.approx(wanted, abs=0.02)
    constant = Features(torch.ones(300, 4), train.labels, train.ids)
    probe = fit_linear(constant)
    assert probe.predict(torch.ones(2, 4)).tolist() == [train.labels.mode().values.item()] * 2


def test_one_class_is_always_predicted():
    train = Features(torch.randn(10, 3), torch.full((10,), 4), torch.arange(10))
    assert fit_linear(train).predict(torch.randn(3, 3)).tolist() == [4, 4, 4]


def test_a_class_of_a_single_sample_and_tiny_sets_are_borne():
    train = Features(torch.randn(3, 2), torch.tensor([0, 1, 2]), torch.arange(3))
    assert 0 <= linear_accuracy(train, train) <= 1
    pair = Features(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1]), torch.arange(2))
    assert linear_accuracy(pair, pair) == 1


def test_a_fit_that_stops_early_is_told_and_not_warned_of(monkeypatch):
    monkeypatch.setattr("torchjepa.evaluation.linear._iterations", lambda size: 2)
    told: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear_accuracy(blobs(200), blobs(50, seed=1), tell=told.append)
    assert len(told) == 1
    assert "stopped before it converged (C = " in told[0]


def test_refusals_say_what_is_wrong():
    train, test = blobs(20), blobs(10, seed=1)
    with pytest.raises(ValueError, match="train has 16 features and test 3"):
        linear_accuracy(train, Features(test.features[:, :3], test.labels, test.ids))
    with pytest.raises(ValueError, match="positive values of C"):
        fit_linear(train, strengths=[])
    with pytest.raises(ValueError, match="positive values of C"):
        fit_linear(train, strengths=[0.0, 1.0])
    broken = Features(test.features.clone(), test.labels, test.ids)
    broken.features[0, 0] = torch.nan
    with pytest.raises(ValueError, match="1 of 160 values in 1 of 10 samples are NaN or Inf"):
        linear_accuracy(train, broken)
    blank = Features(test.features, torch.full((10,), -1), test.ids)
    with pytest.raises(ValueError, match="no test sample has a label"):
        linear_accuracy(train, blank)
    with pytest.raises(ValueError, match="no training sample has a label"):
        linear_accuracy(blank, train)

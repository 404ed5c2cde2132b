"""The attentive probe: against a plain loop, on tokens that only attention can read, and how it chooses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.evaluation.needles import needles
from torchjepa.evaluation import (
    AttentiveSettings,
    Features,
    Tokens,
    attentive,
    attentive_accuracy,
    fit_attentive,
    linear_accuracy,
)
from torchjepa.evaluation.attentive import stratified
from torchjepa.nn import AttentiveClassifier
from torchjepa.nn.init import FanInStd
from torchjepa.rng import generator

SHORT = AttentiveSettings(lrs=(3e-3, 1e-5), weight_decays=(0.01,), epochs=2)


@pytest.fixture(autouse=True)
def few_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attentive, "_LEAST_UPDATES", 1)


def test_attention_finds_what_the_mean_over_tokens_hides() -> None:
    train, test = needles(600), needles(300, seed=1)
    means = [Features(part.tokens.mean(dim=1), part.labels, part.ids) for part in (train, test)]
    assert linear_accuracy(*means) < 0.6
    outcome = attentive_accuracy(train, test, replace(SHORT, epochs=20))
    assert outcome.accuracy > 0.95
    assert (outcome.probe.lr, outcome.probe.weight_decay) == (3e-3, 0.01)
    slow = outcome.probe.sweep[1]
    assert (slow.lr, slow.accuracy < 0.6, slow.loss > 1) == (1e-5, True, True)


def plain_loop(train: Tokens, lr: float, decay: float, epochs: int, batch_size: int) -> AttentiveClassifier:
    """The same training as a textbook has it: one probe, called as a module."""
    network = AttentiveClassifier(
        embed_dim=24, num_classes=4, num_heads=1, depth=1, init_std=FanInStd(), seed=5
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=decay, foreach=False)
    per_epoch = math.ceil(len(train) / batch_size)
    for step in range(epochs * per_epoch):
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(train), generator=generator(5, "attentive-probe", "order", epoch))
        rows = order.tensor_split(per_epoch)[place]
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * (step + 1) / (epochs * per_epoch))) / 2
        optimizer.zero_grad()
        F.cross_entropy(network(train.tokens[rows]), train.labels[rows]).backward()
        optimizer.step()
    return network


def test_it_trains_as_a_plain_loop_does() -> None:
    train = needles(100)
    settings = AttentiveSettings(lrs=(1e-2,), weight_decays=(0.3,), epochs=3, batch_size=32, seed=5)
    probe = fit_attentive(train, settings)
    assert probe.sweep == ()
    expected = plain_loop(train, 1e-2, 0.3, 3, 32)
    start = settings.build(24, 4)
    for name, value in expected.state_dict().items():
        found = probe.network.state_dict()[name]
        if name.endswith(
            "kv.bias"
        ):  # keys' biases cancel in the softmax: rounding alone gives them a gradient
            found, value = found[24:], value[24:]
        torch.testing.assert_close(found, value, atol=2e-4, rtol=1e-3, msg=name)
    assert not torch.allclose(start.linear.weight, probe.network.linear.weight, atol=0.01)


def test_trials_do_not_touch_each_other() -> None:
    train = needles(120)
    pairs = {"lrs": (3e-3, 1e-3), "weight_decays": (0.01, 0.5)}
    together = fit_attentive(train, AttentiveSettings(**pairs, epochs=2)).sweep
    # One of them diverges and leaves the others alone.
    wild = fit_attentive(train, AttentiveSettings(**{**pairs, "lrs": (3e-3, 1e30)}, epochs=2))
    assert [(t.lr, t.weight_decay) for t in together] == [
        (3e-3, 0.01),
        (3e-3, 0.5),
        (1e-3, 0.01),
        (1e-3, 0.5),
    ]
    for trial, same in zip(together[:2], wild.sweep[:2], strict=True):
        assert trial.loss == pytest.approx(same.loss, rel=1e-4)
    assert not math.isfinite(wild.sweep[2].loss)
    assert wild.lr == 3e-3


def test_trials_are_judged_on_samples_that_they_did_not_see() -> None:
    # Labels without a meaning: what was seen is learned by heart, what was held out is not known.
    draw = torch.Generator().manual_seed(0)
    train = Tokens(
        torch.randn(80, 4, 48, generator=draw), torch.randint(2, (80,), generator=draw), torch.arange(80)
    )
    probe = fit_attentive(train, AttentiveSettings(lrs=(5e-3, 4e-3), weight_decays=(0.01,), epochs=60))
    assert (probe.predict(train.tokens) == train.labels).double().mean() > 0.95
    assert all(trial.accuracy < 0.8 and trial.loss > 0.6 for trial in probe.sweep)


def test_the_labels_of_the_test_samples_have_no_say() -> None:
    train, test = needles(100), needles(60, seed=1)
    shuffled = replace(test, labels=test.labels.roll(1))
    first, second = (attentive_accuracy(train, part, SHORT) for part in (test, shuffled))
    assert first.probe.sweep == second.probe.sweep
    assert (first.probe.lr, first.probe.weight_decay) == (second.probe.lr, second.probe.weight_decay)
    for one, other in zip(first.probe.network.parameters(), second.probe.network.parameters(), strict=True):
        assert torch.equal(one, other)
    right = (first.probe.predict(test.tokens) == shuffled.labels).double().mean().item()
    assert second.accuracy == right


def test_it_is_a_function_of_tokens_and_settings() -> None:
    train = needles(60)
    torch.manual_seed(1)
    first = fit_attentive(train, SHORT)
    torch.manual_seed(2)
    second, other = fit_attentive(train, SHORT), fit_attentive(train, replace(SHORT, seed=1))
    assert first.sweep == second.sweep != other.sweep
    assert torch.equal(first.network.linear.weight, second.network.linear.weight)


def test_samples_without_a_label_and_names_of_labels_are_borne() -> None:
    train = needles(80)
    more = Tokens(
        torch.cat([train.tokens, torch.full((5, 12, 24), torch.nan)]),
        torch.cat([train.labels * 3 + 2, torch.full((5,), -1)]),
        torch.arange(85),
    )
    probe = fit_attentive(more, SHORT)
    assert probe.classes.tolist() == [2, 5, 8, 11]
    assert set(probe.predict(train.tokens).tolist()) <= {2, 5, 8, 11}
    assert probe.sweep == fit_attentive(train, SHORT).sweep


def test_few_samples_leave_nothing_to_hold_out() -> None:
    pair = Tokens(torch.randn(2, 3, 8), torch.tensor([0, 1]), torch.arange(2))
    probe = fit_attentive(pair, AttentiveSettings(epochs=1))
    assert (probe.sweep, probe.lr, probe.weight_decay) == ((), 1e-3, 0.4)
    alone = Tokens(torch.randn(20, 3, 8), torch.full((20,), 4), torch.arange(20))
    assert fit_attentive(alone, SHORT).predict(alone.tokens).tolist() == [4] * 20


def test_deeper_probes_are_trained_too() -> None:
    train, test = needles(600), needles(100, seed=1)
    settings = AttentiveSettings(lrs=(5e-3, 1e-5), weight_decays=(0.01,), depth=2, epochs=10)
    assert attentive_accuracy(train, test, settings).accuracy > 0.7


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_each_class_holds_out_its_share(share: float) -> None:
    labels = torch.randint(5, (97,), generator=torch.Generator().manual_seed(3)) ** 2
    held = stratified(labels, share)
    for label in set(labels.tolist()):
        rows = [i for i in range(97) if labels[i] == label]
        num = round(share * len(rows))
        assert [bool(held[i]) for i in rows] == [True] * num + [False] * (len(rows) - num)


def test_heads_suit_the_width() -> None:
    found = {dim: AttentiveSettings().build(dim, 2).config["num_heads"] for dim in (8, 24, 64, 96, 384, 1024)}
    assert found == {8: 1, 24: 1, 64: 4, 96: 6, 384: 16, 1024: 16}
    assert AttentiveSettings(num_heads=3).build(96, 2).config["num_heads"] == 3


def test_refusals_say_what_is_wrong() -> None:
    train, test = needles(20), needles(10, seed=1)
    with pytest.raises(ValueError, match="train has tokens of 24 channels and test 8"):
        attentive_accuracy(train, replace(test, tokens=test.tokens[..., :8]), SHORT)
    blank = replace(test, labels=torch.full((10,), -1))
    with pytest.raises(ValueError, match="no test sample has a label"):
        attentive_accuracy(train, blank, SHORT)
    with pytest.raises(ValueError, match="no training sample has a label"):
        fit_attentive(blank, SHORT)
    broken = replace(test, tokens=test.tokens.clone())
    broken.tokens[3, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="tokens of sample 3 are NaN or Inf"):
        attentive_accuracy(train, broken, SHORT)
    with pytest.raises(ValueError, match=r"lrs must be positive numbers, got \(\)"):
        AttentiveSettings(lrs=())
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        AttentiveSettings(epochs=0)

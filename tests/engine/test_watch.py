"""Finite numbers and time."""

from __future__ import annotations

import math
import time

import pytest
import torch

from torchjepa.engine.watch import FirstBadStep, Stopwatch, Vote, all_finite


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_bad_step_is_remembered(bad: float) -> None:
    first = FirstBadStep(torch.device("cpu"))
    for step, value in enumerate([1.0, 2.0, bad, 3.0, bad]):
        assert first.read() == (-1 if step < 3 else 2)
        first.add(torch.tensor(value, requires_grad=True), step)
    assert first.read() == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_bad_entry_is_seen(bad: float, dtype: torch.dtype) -> None:
    tensors = [torch.zeros(3, 4), torch.ones(5, dtype=dtype), torch.arange(3), torch.zeros(0)]
    assert all_finite(tensors)
    tensors[1][3] = bad
    assert not all_finite(tensors)


def test_large_numbers_are_finite() -> None:
    assert all_finite([torch.full((1000,), 3e38), torch.full((10,), 1e300, dtype=torch.float64)])
    assert all_finite([torch.arange(3)])
    assert all_finite([])


def test_alone_a_vote_is_ones_own() -> None:
    assert Vote()(3, 0) == (3, 0)


def test_what_is_aside_does_not_slow_the_rate() -> None:
    watch = Stopwatch(before=100.0, step=10)
    time.sleep(0.05)
    with watch.aside():
        time.sleep(0.5)
    rate = watch.steps_per_second(15)
    assert 5 / 0.3 < rate <= 5 / 0.05
    assert watch.seconds() >= 100.55

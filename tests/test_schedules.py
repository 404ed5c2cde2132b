"""Learning rate and weight decay against the numbers of the released I-JEPA and V-JEPA recipes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchjepa.schedules import CosineSchedule, WarmupCosine

IJEPA_LR = WarmupCosine(base=1e-3, start=2e-4, final=1e-6, warmup_steps=25_000, total_steps=187_500)


@pytest.mark.parametrize(
    ("k", "value"), [(1, 2.00032e-4), (24_999, 9.99968e-4), (25_000, 1e-3), (187_500, 1e-6)]
)
def test_learning_rate_of_the_released_ijepa(k: int, value: float) -> None:
    assert IJEPA_LR(k - 1) == pytest.approx(value, rel=1e-6)


def test_weight_decay_of_the_released_ijepa() -> None:
    decay = CosineSchedule(start=0.04, final=0.4, total_steps=187_500)
    assert decay(0) == pytest.approx(0.04000000002527, abs=1e-14)
    assert decay(187_499) == pytest.approx(0.4, abs=1e-12)


def test_vjepa_stops_at_four_fifths_of_its_schedules() -> None:
    total, stretched = 90_000, 112_500
    rate = WarmupCosine(base=6.25e-4, start=2e-4, final=1e-6, warmup_steps=12_000, total_steps=stretched)
    assert rate(total - 1) == pytest.approx(7.5e-5, rel=1e-2)
    assert CosineSchedule(0.04, 0.4, stretched)(total - 1) == pytest.approx(0.3656, abs=5e-5)


@given(
    base=st.floats(0, 1),
    start=st.floats(0, 1),
    final=st.floats(0, 1),
    warmup=st.integers(0, 50),
    rest=st.integers(0, 50),
    step=st.integers(0, 200),
)
def test_equals_the_formula(
    base: float, start: float, final: float, warmup: int, rest: int, step: int
) -> None:
    total = max(1, warmup + rest)
    k = min(step + 1, total)
    if k < warmup:
        expected = start + (k / warmup) * (base - start)
    else:
        half = (1 + math.cos(math.pi * (k - warmup) / max(1, total - warmup))) / 2
        expected = base * half + final * (1 - half)
    assert WarmupCosine(base, start, final, warmup, total)(step) == pytest.approx(expected, abs=1e-12)
    half = (1 + math.cos(math.pi * k / total)) / 2
    decay = CosineSchedule(start, final, total)(step)
    assert decay == pytest.approx(start * half + final * (1 - half), abs=1e-12)


def test_past_the_last_step_they_stay() -> None:
    assert IJEPA_LR(187_499) == IJEPA_LR(10**7)
    assert CosineSchedule(0.1, 0.2, 5)(4) == CosineSchedule(0.1, 0.2, 5)(99) == pytest.approx(0.2)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="WarmupCosine: base must be a finite number of at least 0, got -1"):
        WarmupCosine(-1.0, 0.0, 0.0, 0, 1)
    with pytest.raises(
        ValueError, match="CosineSchedule: final must be a finite number of at least 0, got nan"
    ):
        CosineSchedule(0.0, float("nan"), 1)
    with pytest.raises(
        ValueError, match=r"warmup_steps must lie between 0 and total_steps = 10, got 11.*warm-up"
    ):
        WarmupCosine(1.0, 0.0, 0.0, 11, 10)
    with pytest.raises(ValueError, match="warmup_steps must lie between 0"):
        WarmupCosine(1.0, 0.0, 0.0, -1, 10)
    for make in (lambda: WarmupCosine(1.0, 0.0, 0.0, 0, 0), lambda: CosineSchedule(0.0, 1.0, 0)):
        with pytest.raises(ValueError, match="total_steps must be at least 1, got 0"):
            make()
    for schedule in (IJEPA_LR, CosineSchedule(0.0, 1.0, 5)):
        with pytest.raises(ValueError, match="step must be at least 0, got -1"):
            schedule(-1)

"""Bounds and what follows from them: the middle, the spread, uniform actions."""

import math

import pytest
import torch

from torchjepa.planning import ActionSpace


def test_the_middle_and_the_spread_follow_from_the_bounds():
    space = ActionSpace(4, low=(-1.0, -math.inf, 0.5, -math.inf), high=(3.0, math.inf, math.inf, -2.0))
    assert space.center() == (1.0, 0.0, 0.5, -2.0)
    assert space.spread() == (2.0, 1.0, 1.0, 1.0)


def test_one_number_is_for_all_entries():
    assert ActionSpace(2, low=-1, high=2) == ActionSpace(2, low=(-1.0, -1.0), high=[2.0, 2.0])
    assert hash(ActionSpace(2, low=[0, 0]))


def test_actions_are_clamped_entry_by_entry_in_their_dtype():
    space = ActionSpace(2, low=(-1.0, 0.1), high=(1.0, 0.1))
    actions = space.clamp(torch.tensor([[-3.0, 5.0], [0.5, -5.0]], dtype=torch.bfloat16))
    assert actions.dtype == torch.bfloat16
    torch.testing.assert_close(actions.float(), torch.tensor([[-1.0, 0.1], [0.5, 0.1]]), atol=1e-3, rtol=0)


def test_uniform_actions_fill_the_range():
    space = ActionSpace(2, low=(-1.0, 4.0), high=(3.0, math.inf))
    ends = space.from_uniform(torch.tensor([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]))
    assert ends.tolist() == [[-1.0, 4.0], [1.0, 4.0], [3.0, 5.0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "dim must be an integer of at least 1, got 0"),
        ({"dim": 1.0}, "dim must be an integer of at least 1, got 1.0"),
        ({"dim": 2, "low": 1, "high": 0}, "low must not be above high, got 1.0 and 0.0 for entry 0"),
        ({"dim": 2, "low": (1, 2, 3)}, r"low must be a number, or one for each of the 2 .*got \(1, 2, 3\)"),
        ({"dim": 1, "high": math.nan}, "high must be a number"),
        ({"dim": 1, "low": math.inf}, "low must not be above high"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ActionSpace(**settings)

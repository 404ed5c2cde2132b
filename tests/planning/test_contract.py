"""Every planner keeps the contract in every kind of space."""

import pytest

from tests.planning.planners import ALL, SPACES
from torchjepa.testing import check_planner


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", ALL)
def test_contract(name, space):
    space = SPACES[space]
    check_planner(ALL[name](space), space.dim, low=space.low, high=space.high)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("horizon", [1, 7])
def test_contract_at_other_horizons(name, horizon):
    space = SPACES["bounded"]
    check_planner(ALL[name](space), space.dim, low=space.low, high=space.high, horizon=horizon)

"""The projector is linear, norm, ReLU and at last linear."""

import json

import pytest
import torch
import torch.nn.functional as F

from torchjepa.nn import Projector


def test_equals_the_formula():
    projector = Projector(5, 7, 3).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    linears = [p for p in projector.parameters() if p.dim() == 2]
    y = F.batch_norm(x @ linears[0].T, None, None, training=True).relu()
    y = F.batch_norm(y @ linears[1].T, None, None, training=True).relu()
    torch.testing.assert_close(projector(x), y @ linears[2].T)


def test_one_layer_is_linear():
    projector = Projector(5, 7, 3, num_layers=1)
    assert [tuple(p.shape) for p in projector.parameters()] == [(3, 5)]
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        Projector(5, 7, 3, num_layers=0)


def test_config_and_seed():
    projector = Projector(5, 7, 3, seed=2)
    again = Projector(**json.loads(json.dumps(projector.config)), seed=2)
    assert torch.equal(projector[0].weight, again[0].weight)
    assert projector[0].weight.abs().max() <= 5**-0.5

"""Which parameters decay, and that the update is AdamW's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from torchjepa.engine.optim import adamw, parameter_groups, set_schedules


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.mask_token = nn.Parameter(torch.randn(1, 1, 2))
        self.table = nn.Module()
        self.table.bias = nn.Parameter(torch.randn(4, 4))
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Parameter(torch.randn(2, 2), requires_grad=False)


def test_biases_and_1d_parameters_do_not_decay() -> None:
    parts = Parts()
    decayed, spared = parameter_groups(parts)
    names = {id(parameter): name for name, parameter in parts.named_parameters()}
    assert [names[id(p)] for p in decayed["params"]] == ["mask_token", "linear.weight"]
    spared_names = {names[id(p)] for p in spared["params"]}
    assert spared_names == {"linear.bias", "norm.weight", "norm.bias", "table.bias", "temperature"}


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no trainable parameter"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False))


def test_updates_against_float64_arithmetic() -> None:
    linear = nn.Linear(3, 2)
    start = {name: p.detach().double().numpy().copy() for name, p in linear.named_parameters()}
    optimizer = adamw(linear, betas=(0.8, 0.9), eps=1e-6, fused=True, device=torch.device("cpu"))
    grads = [{n: torch.randn_like(p) for n, p in linear.named_parameters()} for _ in range(4)]
    rates, decays = [0.1, 0.05, 0.2, 0.01], [0.3, 0.0, 0.1, 0.5]
    for grad, rate, decay in zip(grads, rates, decays):
        set_schedules(optimizer, rate, decay)
        for name, parameter in linear.named_parameters():
            parameter.grad = grad[name].clone()
        optimizer.step()
    for name, parameter in linear.named_parameters():
        steps = [grad[name].double().numpy() for grad in grads]
        expected = plain_adamw(start[name], steps, rates, decays if name == "weight" else [0.0] * 4)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def plain_adamw(
    w: np.ndarray, grads: list[np.ndarray], rates: list[float], decays: list[float]
) -> np.ndarray:
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, (g, rate, decay) in enumerate(zip(grads, rates, decays), start=1):
        w = w - rate * decay * w
        m = 0.8 * m + 0.2 * g
        v = 0.9 * v + 0.1 * g * g
        w = w - rate * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-6)
    return w

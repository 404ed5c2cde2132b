"""Probes of one batch at once, against calling them one by one."""

import pytest
import torch

from torchjepa.evaluation.attentive_heads import joint_logits
from torchjepa.nn import AttentiveClassifier


def probes(num: int, depth: int, heads: int) -> list[AttentiveClassifier]:
    draw = torch.Generator().manual_seed(0)
    made = []
    for seed in range(num):
        probe = AttentiveClassifier(
            embed_dim=24, num_classes=5, num_heads=heads, depth=depth, init_std=0.3, seed=seed
        ).double()
        for parameter in probe.parameters():  # biases and norms away from 0 and 1
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        made.append(probe)
    return made


@pytest.mark.parametrize(("depth", "heads"), [(1, 1), (1, 4), (3, 4)])
def test_logits_and_gradients_are_those_of_each_probe_alone(depth: int, heads: int) -> None:
    made = probes(3, depth, heads)
    x = 3 * torch.randn(7, 11, 24, dtype=torch.float64) + 1
    joint = joint_logits(made, x)
    alone = torch.stack([probe(x) for probe in made])
    torch.testing.assert_close(joint, alone, atol=1e-12, rtol=1e-12)
    weight = torch.randn_like(joint)
    parameters = [parameter for probe in made for parameter in probe.parameters()]
    found, expected = (torch.autograd.grad((each * weight).sum(), parameters) for each in (joint, alone))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-10)

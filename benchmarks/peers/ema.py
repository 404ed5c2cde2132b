"""The moving average as the published training loops write it: a parameter at a time."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    for average, parameter in zip(target.parameters(), online.parameters(), strict=True):
        average.data.mul_(momentum).add_((1.0 - momentum) * parameter.detach().data)

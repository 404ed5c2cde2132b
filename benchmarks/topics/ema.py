"""EMA: one update of every parameter of a vision transformer, beside a loop over the parameters

The loop passes over memory seven times: it reads and writes the target, reads the online weights and writes them
scaled to a new tensor, then reads that and the target and writes the target. Three of these are needed: read target,
read online, write target. So where both are bound by memory, 7 / 3 is the most that can be gained; more comes only from
what the loop loses beside its passes. The limit is one addition in place of two flat buffers of the same bytes.
All lie in huge pages, as in `jepa train` on a CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from benchmarks.harness import Comparison, Contenders, relative_distance
from benchmarks.peers import ema as plain
from torchjepa.ema import EMA
from torchjepa.engine.host_memory import use_huge_pages
from torchjepa.nn import ViT

_MOMENTUM = 0.996


def comparisons() -> Iterator[Comparison]:
    names = {"tiny": "Ti", "small": "S", "base": "B"}
    for preset, dtype in (
        ("base", torch.float32),
        ("tiny", torch.float32),
        ("tiny", torch.bfloat16),
        ("base", torch.bfloat16),
    ):
        asked = (preset, dtype) == ("base", torch.float32)
        yield Comparison(
            f"{str(dtype).removeprefix('torch.')}, ViT-{names[preset]}",
            "official",
            partial(_build, preset, dtype),
            goal=3.0 if asked else None,
            limit_goal=1.2 if asked else None,
            bar=1.4 if (preset, dtype) == ("tiny", torch.float32) else None,
            # In bfloat16 the loop rounds after the product and after the sum, ours once.
            tolerance=1e-6 if dtype == torch.float32 else 1e-2,
            pairs=25,
        )


def _build(preset: str, dtype: torch.dtype) -> Contenders:
    use_huge_pages()
    online = ViT.preset(preset).to(dtype)
    target = _perturbed(online)
    other = copy.deepcopy(target)
    ours = partial(EMA(_MOMENTUM).update_, target, online, 0)
    peer = partial(plain.update, other, online, _MOMENTUM)
    ours()
    peer()
    deviation = relative_distance(target.parameters(), other.parameters())
    num = sum(parameter.numel() for parameter in online.parameters())
    flat, added = torch.ones(num, dtype=dtype), torch.zeros(num, dtype=dtype)
    return Contenders(ours, peer, partial(torch.add, flat, added, out=flat), deviation)


@torch.no_grad()
def _perturbed(module: nn.Module) -> nn.Module:
    moved = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(0)
    for parameter in moved.parameters():
        parameter += 0.02 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return moved

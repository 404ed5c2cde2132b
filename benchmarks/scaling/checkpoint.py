"""Writing a checkpoint, verifying it and reading it back, over the parameters."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from benchmarks.scaling.curve import Curve, growth_of, seconds_of
from benchmarks.scaling.step import SIZES, recipe_of
from torchjepa.engine import newest_checkpoint
from torchjepa.engine.checkpoint import save_checkpoint
from torchjepa.engine.optim import adamw


def curves() -> Iterator[Curve]:
    """I-JEPA from Ti to B with its optimizer (the L's 6 GB would measure the disk)."""
    widths, most = tuple(SIZES)[:3], {"seconds": 1.0, "bytes": 1.0}
    yield Curve(
        "checkpoint written over parameters",
        "width",
        widths,
        _written,
        most,
        against="parameters",
        fresh=True,
    )
    yield Curve(
        "checkpoint read over parameters", "width", widths, _read, most, against="parameters", fresh=True
    )


def _written(width: int) -> Mapping[str, float]:
    learner, training = _state(width)
    with tempfile.TemporaryDirectory() as folder:

        def write() -> object:
            return save_checkpoint(Path(folder), 1, learner, training, keep=1)

        grown = growth_of(write)
        return {"parameters": _count(learner), "seconds": seconds_of(write, most=3), "bytes": grown}


def _read(width: int) -> Mapping[str, float]:
    learner, training = _state(width)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), 1, learner, training, keep=1)
        del training

        def read() -> object:
            found = newest_checkpoint(Path(folder))
            assert found is not None
            learner.load_state_dict(found.tensors())
            return found.training()

        grown = growth_of(read)
        return {"parameters": _count(learner), "seconds": seconds_of(read, most=3), "bytes": grown}


def _state(width: int) -> tuple[torch.nn.Module, dict[str, object]]:
    learner = recipe_of(SIZES[width], 224, 16, 2).seeded_learner(3, 100)
    optimizer = adamw(learner, betas=(0.9, 0.999), eps=1e-8, fused=True, device=torch.device("cpu"))
    for parameter in learner.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return learner, {"optimizer": optimizer.state_dict()}


def _count(learner: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in learner.parameters())

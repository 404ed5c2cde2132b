"""Memory in which nothing is right by chance, and who is called when a block runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from torchjepa.nn.native import attention, nodes


@pytest.fixture(autouse=True, scope="package")
def unwritten_memory_is_nan() -> Iterator[None]:
    """What a kernel forgets to write would often be what the call before has written there, and right."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.zeros(2).new_empty(2).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels' nodes in the order in which they are called."""
    names: list[str] = []

    def note(module: Any, name: str) -> None:
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: names.append(name) or original(*args))

    for name in ("norm_heads", "linear_add", "norm_mlp_add"):
        note(nodes, name)
    note(attention, "attend")
    return names

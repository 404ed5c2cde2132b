"""Who is called when a block runs."""

from __future__ import annotations

from typing import Any

import pytest

from torchjepa.nn.native import nodes, tile_attention


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels' nodes in the order in which they are called."""
    names: list[str] = []

    def note(module: Any, name: str) -> None:
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: names.append(name) or original(*args))

    for name in ("norm_heads", "linear_add", "norm_mlp_add"):
        note(nodes, name)
    note(tile_attention, "attend")
    return names

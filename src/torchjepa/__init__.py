"""torchjepa: Joint Embedding Predictive Architectures in PyTorch.

`import torchjepa` is light; every room loads when it is first touched:

    import torchjepa
    loss = torchjepa.collapse.VICReg()
    encoder = torchjepa.load("IN1K-vit.h.14-300e.pth.tar").model
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

__version__ = "0.1.0"

_ROOMS = frozenset(
    module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
)
# Functions that have no need of their room's name, and the room.
_FUNCTIONS = {"load": "hub", "push_to_hub": "hub", "save": "hub"}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"{__name__}.{_FUNCTIONS[name]}"), name)
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}; it has {', '.join(sorted({*_ROOMS, *_FUNCTIONS}))}."
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS, *_FUNCTIONS})

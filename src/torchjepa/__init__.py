"""torchjepa: Joint Embedding Predictive Architectures in PyTorch.

`import torchjepa` is light; every room loads when it is first touched:

    import torchjepa
    loss = torchjepa.collapse.VICReg()
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

__version__ = "0.1.0"

_ROOMS = frozenset(
    module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
)


def __getattr__(name: str) -> ModuleType:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}; it has {', '.join(sorted(_ROOMS))}."
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})

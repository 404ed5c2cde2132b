"""The families of checkpoints that torchjepa reads and writes: one data file each, found by being here."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from torchjepa.hub.family import Family, kind_of
from torchjepa.hub.keymap import Shape
from torchjepa.hub.naming import split_names


@cache
def families() -> dict[str, Family]:
    """Every family by its name."""
    modules = (
        importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)
    )
    return {module.FAMILY.name: module.FAMILY for module in modules}


def identify(shapes: Mapping[str, Shape]) -> Family | None:
    """The family that a file belongs to, from the names and shapes of its tensors alone.

    A family fits when every network that the file holds has the tensors of its signature; of several that fit the
    one with the longest signatures is it.

    Args:
        shapes: shape of every tensor by its full name.

    Returns:
        The family, `None` where no one fits.
    """
    kinds: dict[str, dict[str, Shape]] = {}
    for part, names in split_names(shapes).parts.items():
        kinds.setdefault(kind_of(part), {}).update({rest: shapes[full] for rest, full in names.items()})
    scores = {name: _score(family, kinds) for name, family in families().items()}
    best = max(scores, key=lambda name: scores[name])
    return families()[best] if scores[best] > 0 else None


def _score(family: Family, kinds: Mapping[str, Mapping[str, Shape]]) -> int:
    score = 0
    for kind, shapes in kinds.items():
        network = family.networks.get(kind)
        if network is None or any(
            len(shapes.get(name, ())) != axes for name, axes in network.signature.items()
        ):
            return 0
        score += len(network.signature)
    return score if kinds and family.accepts(kinds) else 0

"""What `jepa train` was asked for."""

from __future__ import annotations

import dataclasses
from typing import Any

from torchjepa.recipes.base import Recipe


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked for on the command line.

    Args:
        recipe_name: a built-in recipe, or the user's `FILE.py:VARIABLE` with its absolute path.
        recipe: all its fields as they will be run.
        overrides: those that differ from the recipe's file, by their flat names.
        resume: whether a run goes on.
        argv: the command line.
    """

    recipe_name: str
    recipe: Recipe
    overrides: dict[str, Any]
    resume: bool
    argv: tuple[str, ...]

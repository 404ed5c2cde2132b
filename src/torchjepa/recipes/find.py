"""Find a recipe: by the name of a file in this folder, or in a Python file of the user's."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

from torchjepa import recipes
from torchjepa.recipes.base import Recipe

DEFAULT = "digits"


def recipe_names() -> list[str]:
    """The names of the built-in recipes, the default first."""
    modules = (module.name for module in pkgutil.iter_modules(recipes.__path__))
    names = [_spoken(name) for name in modules if hasattr(_module(name), "recipe")]
    return sorted(names, key=lambda name: (name != DEFAULT, name))


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Args:
        name: a built-in recipe (`ijepa-tiny`) or `FILE.py:VARIABLE` (`my_recipe.py:recipe`).

    Raises:
        ValueError: there is none, with the nearest name; or the file cannot be used, with the reason.
    """
    if ".py" in name:
        return _from_file(name)
    names = recipe_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"There is no recipe {name!r}.{hint} The recipes are {', '.join(names)}; "
            "one of your own is given as my_recipe.py:recipe."
        )
    return _checked(_module(name.replace("-", "_")).recipe, name)


def recipe_text(name: str) -> str:
    """The docstring of a built-in recipe's file: the command, the cost and the expected score."""
    return (_module(name.replace("-", "_")).__doc__ or "").strip()


def _spoken(module_name: str) -> str:
    return module_name.replace("_", "-")


def _module(module_name: str) -> ModuleType:
    return importlib.import_module(f"{recipes.__name__}.{module_name}")


def _from_file(name: str) -> Recipe:
    path_text, _, variable = name.partition(":")
    path = Path(path_text).expanduser().resolve()
    if not path.is_file():
        raise ValueError(
            f"There is no recipe file {path_text!r}. A recipe of your own is given as FILE.py:VARIABLE."
        )
    # Dataclasses look their module up by name, so it must be registered before it runs.
    spec = importlib.util.spec_from_file_location(f"torchjepa_recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    variable = variable or "recipe"
    if not hasattr(module, variable):
        raise ValueError(
            f"{path_text} has no variable {variable!r}; write `{variable} = IJEPARecipe(...)` in it."
        )
    return _checked(getattr(module, variable), name)


def _checked(recipe: object, name: str) -> Recipe:
    if not isinstance(recipe, Recipe):
        raise ValueError(
            f"{name} is a {type(recipe).__name__}, not a recipe; use torchjepa.recipes.IJEPARecipe, "
            "JointEmbeddingRecipe or a subclass of Recipe."
        )
    return recipe

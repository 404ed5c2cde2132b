"""Find a recipe: by the name of a file in this folder, or in a Python file of the user's."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from pathlib import Path
from types import ModuleType

from torchjepa import recipes
from torchjepa.recipes.base import Recipe

DEFAULT = "digits"


def recipe_names() -> list[str]:
    """The names of the built-in recipes, the default first."""
    modules = (module.name for module in pkgutil.iter_modules(recipes.__path__))
    names = [name.replace("_", "-") for name in modules if hasattr(_module(name), "recipe")]
    return sorted(names, key=lambda name: (name != DEFAULT, name))


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`.

    Args:
        name: a built-in recipe (`ijepa-tiny`) or `FILE.py:VARIABLE` (`my_recipe.py:recipe`).

    Raises:
        ValueError: there is none, with the nearest name; or the file cannot be used, with the reason.
    """
    if is_file(name):
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


def is_file(name: str) -> bool:
    """Whether a recipe's name is that of a Python file, `FILE.py` or `FILE.py:VARIABLE`."""
    return name.partition(":")[0].endswith(".py")


def locate(name: str) -> tuple[Path, str]:
    """The Python file and the variable that a name of the user's own recipe stands for."""
    path, _, variable = name.partition(":")
    return Path(path).expanduser().resolve(), variable or "recipe"


def recipe_text(name: str) -> str:
    """The docstring of a recipe's file: the command, the cost and the expected score."""
    if is_file(name):
        return ast.get_docstring(ast.parse(locate(name)[0].read_text(encoding="utf-8"))) or ""
    return (_module(name.replace("-", "_")).__doc__ or "").strip()


def _module(module_name: str) -> ModuleType:
    return importlib.import_module(f"{recipes.__name__}.{module_name}")


def _from_file(name: str) -> Recipe:
    path, variable = locate(name)
    if not path.is_file():
        raise ValueError(
            f"There is no recipe file {path}. A recipe of your own is given as FILE.py:VARIABLE."
        )
    module = _executed(path)
    if not hasattr(module, variable):
        raise ValueError(f"{path} has no variable {variable!r}; write `{variable} = IJEPARecipe(...)` in it.")
    return _checked(getattr(module, variable), name)


def _executed(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"torchjepa_recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name, so it must be registered before it runs.
    sys.modules[spec.name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # what lies beside the file can be imported, as for a script
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise ValueError(f"{path} cannot be used as a recipe: {_reason(error, path)}") from error
    return module


def _reason(error: Exception, path: Path) -> str:
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}{f' in line {line}' if line else ''}: {text}"


def _checked(recipe: object, name: str) -> Recipe:
    if not isinstance(recipe, Recipe):
        raise ValueError(
            f"{name} is a {type(recipe).__name__}, not a recipe; use torchjepa.recipes.IJEPARecipe, "
            "JointEmbeddingRecipe or a subclass of Recipe."
        )
    return recipe

from pathlib import Path

import pytest

from torchjepa.recipes import IJEPARecipe, JointEmbeddingRecipe
from torchjepa.recipes.find import find_recipe, is_file, locate, recipe_names, recipe_text

GOOD = '"""What it is."""\nfrom torchjepa.recipes import IJEPARecipe\nrecipe = other = IJEPARecipe(steps=3)\n'


def test_names_are_found_by_themselves_the_default_first() -> None:
    names = recipe_names()
    assert names[0] == "digits"
    assert names[1:] == sorted(names[1:])
    assert not {"base", "find", "serial", "masked", "joint-embedding"} & set(names)


def test_the_built_in_ones() -> None:
    assert isinstance(find_recipe("digits"), JointEmbeddingRecipe)
    assert isinstance(find_recipe("ijepa-tiny"), IJEPARecipe)


def test_an_unknown_one_names_the_nearest_and_all() -> None:
    with pytest.raises(
        ValueError, match=r"'vicreg-tin'. Did you mean vicreg-tiny\? The recipes are digits, "
    ):
        find_recipe("vicreg-tin")
    with pytest.raises(ValueError, match=r"no recipe 'base'"):
        find_recipe("base")


def test_a_python_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    for name in (str(path), f"{path}:recipe", f"{path}:other"):
        assert find_recipe(name).steps == 3
    assert recipe_text(f"{path}:recipe") == "What it is."
    assert is_file(str(path))
    assert not is_file("ijepa-tiny")
    assert locate(f"{path}:other") == (path, "other")
    assert locate(str(path)) == (path, "recipe")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There is no recipe file"),
        ("x = 1\n", "has no variable 'recipe'; write `recipe = IJEPARecipe"),
        ("recipe = 3\n", "is a int, not a recipe"),
        ("from torchjepa.recipes import IJEPARecipe as recipe\n", "is a ABCMeta, not a recipe"),
        ("x = 1\nrecipe = (\n", "cannot be used as a recipe: SyntaxError in line 2"),
        ("x = 1\nimport nothing_of_that_name\n", "ModuleNotFoundError in line 2: No module named"),
        ("recipe = undefined\n", "NameError in line 1: name 'undefined' is not defined"),
        (
            "from torchjepa.recipes import IJEPARecipe\nrecipe = IJEPARecipe(steps=0)\n",
            "ValueError in line 2: --steps must be",
        ),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        find_recipe(str(path))


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "changing.py"
    path.write_text(GOOD)
    find_recipe(str(path))
    path.write_text(GOOD.replace("steps=3", "steps=44"))
    assert find_recipe(str(path)).steps == 44

"""jepa train: train on your images (or the embedded digits), judge the encoder, write the report."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from torchjepa.recipes.base import Recipe
from torchjepa.recipes.find import DEFAULT, find_recipe, recipe_names, recipe_text
from torchjepa.recipes.serial import from_json, to_json

HELP = """{text}

usage: jepa train [RECIPE] [--from RUN.json] [--resume] [--field value ...]

Recipes: {names}; one of your own is given as my_recipe.py:recipe."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    recipe_name: str
    recipe: Recipe
    resume: bool


def run(argv: Sequence[str]) -> int:
    """Run `jepa train` with these arguments."""
    request = parse(argv)
    # Imported late, so that --help and a mistyped flag answer at once.
    from torchjepa.cli.pipeline import train_and_judge

    return train_and_judge(request)


def parse(argv: Sequence[str]) -> Request:
    """Turn the arguments into a recipe: its file's fields, then those of --from, then the flags.

    Raises:
        ValueError: an unknown recipe, or a run.json that cannot be read.
        SystemExit: a flag is unknown or has the wrong type (exit code 2), or --help was asked for (0).
    """
    name, rest = (argv[0], list(argv[1:])) if argv and not argv[0].startswith("-") else (None, list(argv))
    stored = _stored(rest)
    if stored is not None and name is not None and name != stored["recipe"]:
        raise ValueError(
            f"--from names the recipe {stored['recipe']!r}, the command line {name!r}; leave one out."
        )
    name = name or (stored["recipe"] if stored else DEFAULT)
    request = _parse_flags(name, _with(find_recipe(name), stored), rest)
    if request.resume and stored is None:
        # What runs/<name> was started with is what goes on; flags given now are looked at on top of it.
        path = Path(request.recipe.runs) / str(request.recipe.name) / "run.json"
        if path.is_file():
            request = _parse_flags(name, _with(find_recipe(name), _read(path)), rest)
    return request


def _parse_flags(name: str, recipe: Recipe, argv: list[str]) -> Request:
    flags = Annotated[type(recipe), tyro.conf.arg(name="")]
    command = dataclasses.make_dataclass(
        "Train",
        [
            ("recipe", flags, dataclasses.field(default=recipe)),
            (
                "resume",
                Annotated[
                    bool,
                    tyro.conf.arg(help="Go on with the run of this name from its newest good checkpoint."),
                ],
                dataclasses.field(default=False),
            ),
            (
                "from_",
                Annotated[
                    str | None,
                    tyro.conf.arg(name="from", help="Repeat the run that this run.json describes."),
                ],
                dataclasses.field(default=None),
            ),
        ],
    )
    text = "" if ".py" in name else recipe_text(name)
    description = HELP.format(text=text, names=", ".join(recipe_names()))
    parsed: Any = tyro.cli(
        command,
        args=argv,
        prog=f"jepa train {name}",
        description=description,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    chosen: Recipe = parsed.recipe
    if chosen.name is None:
        chosen = dataclasses.replace(chosen, name=Path(name.partition(":")[0]).stem)
    return Request(name, chosen, parsed.resume)


def _stored(argv: list[str]) -> dict[str, Any] | None:
    for i, argument in enumerate(argv):
        if argument == "--from" and i + 1 < len(argv):
            return _read(Path(argv[i + 1]))
        if argument.startswith("--from="):
            return _read(Path(argument.partition("=")[2]))
    return None


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        path = path / "run.json"
    if not path.is_file():
        raise ValueError(f"--from {path}: there is no such file; give the run.json of a run folder.")
    try:
        stored = json.loads(path.read_text())
        return {"recipe": str(stored["recipe"]), "settings": dict(stored["settings"])}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the run.json of a run: {type(error).__name__} {error}.") from None


def _with(recipe: Recipe, stored: dict[str, Any] | None) -> Recipe:
    return recipe if stored is None else from_json(recipe, stored["settings"])


def describe(request: Request) -> dict[str, Any]:
    """What run.json says about the recipe: its name, the command line and every field."""
    name = request.recipe_name
    if ".py" in name:
        path, _, variable = name.partition(":")
        name = f"{Path(path).expanduser().resolve()}:{variable or 'recipe'}"
    return {"recipe": name, "command": ["jepa", *sys.argv[1:]], "settings": to_json(request.recipe)}

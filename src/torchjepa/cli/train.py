"""jepa train: train on your images (or the embedded digits), judge the encoder, write the report."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from torchjepa.cli.request import Request
from torchjepa.cli.run_json import StoredRun, read_run
from torchjepa.engine import resolve_precision
from torchjepa.recipes.base import Recipe
from torchjepa.recipes.find import DEFAULT, find_recipe, is_file, locate, recipe_names, recipe_text
from torchjepa.recipes.serial import differences, flatten, from_json, to_json

HELP = """{text}

usage: jepa train [RECIPE] [--from RUN.json] [--resume] [--field value ...]

Recipes: {names}; one of your own is given as my_recipe.py:recipe."""


def run(argv: Sequence[str]) -> int:
    """Run `jepa train` with these arguments."""
    request = parse(argv)
    # Imported late, so that --help and a mistyped flag answer at once.
    from torchjepa.cli.pipeline import train_and_judge

    return train_and_judge(request)


def parse(argv: Sequence[str]) -> Request:
    """Turn the arguments into a recipe: its file's fields, then those of the stored run, then the flags.

    The stored run is the one that --from names, or the one that --resume goes on with.

    Raises:
        ValueError: an unknown recipe or flag (the nearest is named), a run.json that cannot be read, or a value
            that no recipe can have.
        SystemExit: a flag has a value of the wrong type (exit code 2), or --help was asked for (0).
    """
    name, rest = (argv[0], list(argv[1:])) if argv and not argv[0].startswith("-") else (None, list(argv))
    early = _look_ahead(rest)
    stored = _stored(early, name)
    name = _agreed(name, stored)
    base = find_recipe(name)
    recipe = base if stored is None else from_json(base, stored.settings)
    parsed = _parse_flags(name, recipe, rest)
    recipe = parsed.recipe
    if recipe.name is None:
        recipe = dataclasses.replace(recipe, name=_short(name))
    if early.source and not early.name and not parsed.resume:
        recipe = dataclasses.replace(recipe, name=_free_name(Path(recipe.runs), str(recipe.name)))
    if is_file(name):
        name = ":".join(map(str, locate(name)))
    overrides = differences(to_json(recipe), to_json(base))
    # Resolved here, so that run.json says what was run and another machine repeats it.
    recipe = dataclasses.replace(recipe, precision=resolve_precision(recipe.precision, recipe.accelerator))
    return Request(name, recipe, overrides, parsed.resume, ("train", *argv))


def _look_ahead(argv: list[str]) -> argparse.Namespace:
    """The few flags that decide which recipe the others belong to."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--from", dest="source")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--name")
    parser.add_argument("--runs")
    try:
        return parser.parse_known_args(argv)[0]
    except argparse.ArgumentError:  # a flag without its value: the parser of all flags says so
        return parser.parse_known_args([])[0]


def _stored(early: argparse.Namespace, name: str | None) -> StoredRun | None:
    if early.source:
        return read_run(Path(early.source))
    if not early.resume:
        return None
    # The default recipe decides where runs lie when there is neither a name nor a recipe.
    base = find_recipe(name or DEFAULT)
    place = {"runs": early.runs or base.runs, "name": early.name or base.name or _short(name or DEFAULT)}
    folder = Path(place["runs"], place["name"])
    if not (folder / "run.json").is_file():
        return None
    stored = read_run(folder)
    # The folder may have been moved since: it goes on where it was found.
    return dataclasses.replace(stored, settings={**stored.settings, **place})


def _agreed(name: str | None, stored: StoredRun | None) -> str:
    """The recipe that the command line and the stored run agree on."""
    if stored is None or name is None:
        return name or (stored.recipe if stored else DEFAULT)
    # A recipe's file may have moved since: the one given now counts.
    if name != stored.recipe and not (is_file(name) and is_file(stored.recipe)):
        raise ValueError(
            f"{stored.path} is of the recipe {stored.recipe!r}, the command line says {name!r}; leave it out."
        )
    return name


def _parse_flags(name: str, recipe: Recipe, argv: list[str]) -> Any:
    extra = [
        (
            "resume",
            tyro.conf.FlagCreatePairsOff[bool],
            False,
            "Go on with the run of this name from its newest good checkpoint.",
            "resume",
        ),
        ("source", str | None, None, "Repeat the run that this run.json describes.", "from"),
    ]
    fields: list[Any] = [
        (
            "recipe",
            Annotated[type(recipe), tyro.conf.arg(name="")],
            dataclasses.field(default=recipe),
        )
    ]
    for field, kind, default, text, flag in extra:
        hint = Annotated[kind, tyro.conf.arg(name=flag, help=text)]  # type: ignore[valid-type]
        fields.append((field, hint, dataclasses.field(default=default)))
    parsed, unknown = tyro.cli(
        dataclasses.make_dataclass("Train", fields),
        args=argv,
        prog=f"jepa train {name}",
        description=HELP.format(text=recipe_text(name), names=", ".join(recipe_names())),
        return_unknown_args=True,
    )
    if unknown:
        raise ValueError(_unknown(unknown[0], name, recipe))
    return parsed


def _unknown(argument: str, name: str, recipe: Recipe) -> str:
    if argument in recipe_names() or is_file(argument):
        return f"The recipe comes first: jepa train {argument} [--field value ...]."
    known = [*flatten(to_json(recipe)), "from", "resume"]
    flags = [f"--{key.replace('_', '-')}" for key in known if not key.endswith("class")]
    near = difflib.get_close_matches(argument.partition("=")[0].replace("_", "-"), flags, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"There is no option {argument!r}.{hint} `jepa train {name} --help` lists them."


def _short(name: str) -> str:
    """What a run of this recipe is called when nobody says."""
    return locate(name)[0].stem if is_file(name) else name


def _free_name(runs: Path, name: str) -> str:
    """The name itself, or with the first number behind it that is not taken."""
    taken, number = name, 1
    while (runs / taken).exists():
        number += 1
        taken = f"{name}-{number}"
    return taken

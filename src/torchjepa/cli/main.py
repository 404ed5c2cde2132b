"""The entry point: find the subcommand's file, run it, and turn errors into one line and an exit code."""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

import torchjepa
from torchjepa import cli

USAGE = """jepa: train a JEPA on your own images, judge it, use it.

usage: jepa COMMAND ...

{commands}

`jepa COMMAND --help` lists what a command takes. `jepa train` alone runs the embedded example.
An error is one line and exit code 2; JEPA_TRACEBACK=1 shows where it came from."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `jepa` with these arguments; the exit code (0 good, 2 an error that the message explains)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE.format(commands=_listing()))
        return 0
    if arguments[0] == "--version":
        print(f"torchjepa {torchjepa.__version__}")
        return 0
    try:
        return _command(arguments[0]).run(arguments[1:])
    except KeyboardInterrupt:
        print("jepa: interrupted.", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError, PermissionError, ModuleNotFoundError) as error:
        if os.environ.get("JEPA_TRACEBACK"):
            raise
        print(f"jepa: {error}", file=sys.stderr)
        return 2


def command_names() -> list[str]:
    """The subcommands: the files of this folder that have a function `run`."""
    names = sorted(module.name for module in pkgutil.iter_modules(cli.__path__) if module.name != "main")
    return [name for name in names if hasattr(_module(name), "run")]


def _command(name: str) -> ModuleType:
    names = command_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no command {name!r}.{hint} The commands are {', '.join(names)}.")
    return _module(name)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{cli.__name__}.{name}")


def _listing() -> str:
    lines = []
    for name in command_names():
        summary = (_module(name).__doc__ or "").strip().splitlines()[0]
        lines.append(f"  {name:<8}{summary.split(': ', 1)[-1]}")
    return "\n".join(lines)

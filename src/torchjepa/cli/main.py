"""The entry point: find the subcommand's file, run it, and turn errors into one line and an exit code."""

from __future__ import annotations

import ast
import difflib
import importlib
import logging
import os
import pkgutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torchjepa
from torchjepa import cli

USAGE = """jepa: train a JEPA on your own images, judge it, use it.

usage: jepa COMMAND ...

{commands}

`jepa COMMAND --help` lists what a command takes. `jepa train` alone runs the embedded example.
An error is one line and exit code 2, or 1 where a loss became NaN or infinite; JEPA_TRACEBACK=1 shows where
it came from. Exit code 1 also says that features have collapsed: of `jepa doctor`, which answers 2 where it cannot
tell, and of `jepa train --on-collapse stop`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `jepa` with these arguments.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        The exit code: 0 good (also after SIGINT or SIGTERM between two training steps), 1 the run diverged or the
        doctor finds it unhealthy, 2 an error that the message explains (or the doctor cannot tell), 130
        interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with _plain_output():
        try:
            return _run(arguments)
        except KeyboardInterrupt:
            print("jepa: interrupted.", file=sys.stderr)
            return 130
        except BrokenPipeError:  # `jepa train --help | head`: nobody reads on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:
            code = _exit_code(error)
            if code is None or os.environ.get("JEPA_TRACEBACK"):
                raise
            print(f"jepa{_rank()}: {_message(error)}", file=sys.stderr)
            return code


def command_names() -> dict[str, str]:
    """The subcommands, name to summary: the files of this folder that begin with `jepa <name>: <summary>`.

    Read and not imported, so that `jepa --help` answers at once.
    """
    names = {}
    for module in pkgutil.iter_modules(cli.__path__):
        path = Path(cli.__path__[0]) / f"{module.name}.py"
        title, colon, summary = _docstring(path).partition(": ")
        if colon and title == f"jepa {module.name}":
            names[module.name] = summary.splitlines()[0]
    return names


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        listing = [f"  {name:<8}{summary}" for name, summary in command_names().items()]
        print(USAGE.format(commands="\n".join(listing)))
        return 0
    if arguments[0] == "--version":
        print(f"torchjepa {torchjepa.__version__}")
        return 0
    name, names = arguments[0], list(command_names())
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"There is no command {name!r}.{hint} The commands are {', '.join(names)}.")
    return importlib.import_module(f"{cli.__name__}.{name}").run(arguments[1:])


@contextmanager
def _plain_output() -> Iterator[None]:
    """Warnings as one line each, from one process, and without what a user can do nothing about."""
    for chatty in ("distributed", "rank_zero"):  # lightning sets the level of its own top logger
        logging.getLogger(f"lightning_fabric.utilities.{chatty}").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*`broadcast_buffers` is deprecated")
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        warnings.showwarning = _show_warning
        yield


def _show_warning(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    if not _rank():
        print(f"jepa: {_one_line(str(message))}", file=sys.stderr)


def _exit_code(error: Exception) -> int | None:
    """The exit code of an error that a user can do something about; `None` for a defect of ours."""
    if isinstance(error, (ValueError, OSError, ModuleNotFoundError)):
        return 2
    if isinstance(error, RuntimeError):
        import torch

        from torchjepa.data import WorkerKilledError
        from torchjepa.engine import DivergedError

        if isinstance(error, (torch.OutOfMemoryError, WorkerKilledError)):
            return 2
        return 1 if isinstance(error, DivergedError) else None
    return None


def _message(error: Exception) -> str:
    text = _one_line(str(error)) or type(error).__name__
    if type(error).__name__ == "OutOfMemoryError":
        return f"{text} Lower --batch-size, or split it with --accumulate."
    return text


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines())


def _rank() -> str:
    """` (rank 3)` where this is not the process that speaks for all."""
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
    return "" if rank == "0" else f" (rank {rank})"

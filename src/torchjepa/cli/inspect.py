"""jepa inspect: say what a checkpoint holds, and what of it would load."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from torchjepa.cli.inspecting import Inspection, Part

_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_FORMATS = {"pickle": "file of torch.save", "safetensors": "safetensors"}
_MOST_OTHER = 12


@dataclasses.dataclass(frozen=True)
class InspectCommand:
    """Say what a checkpoint holds, and what of it would load; nothing in it is run.

    Takes official files (.pth.tar, .pt), safetensors, transformers folders, encoder folders, runs, and hub ids. A file
    that is damaged, lies about its sizes or wants to import code is refused: one line, exit code 2.
    """

    source: Annotated[str, tyro.conf.Positional]
    """File, folder, run, or id on the hub."""
    tensors: bool = False
    """List the tensors of each part: name, shape, dtype; those of alike blocks in one line."""
    no_check: bool = False
    """Do not try to load every network, which reads the whole file: checksums, NaN, names, shapes."""
    num_heads: int | None = None
    """Attention heads, where neither the file nor the table of known models tells."""
    json: bool = False
    """Print one JSON object and nothing else."""


def run(argv: Sequence[str]) -> int:
    """Run `jepa inspect` with these arguments."""
    command = tyro.cli(
        InspectCommand, args=list(argv), prog="jepa inspect", config=(tyro.conf.FlagCreatePairsOff,)
    )
    from rich.console import Console

    from torchjepa.cli.inspecting import inspect

    with Console(stderr=True).status(f"reading {command.source}"):
        found = inspect(command.source, num_heads=command.num_heads, check=not command.no_check)
    if command.json:
        print(json.dumps(found.to_json(), indent=2))
        return 0
    console = Console(highlight=False)
    if not console.is_terminal:  # who reads from a pipe wants a row to be a line
        console = Console(highlight=False, width=10_000)
    with console.capture() as text:
        _show(console, found)
        if command.tensors:
            _show_tensors(console, found.parts)
    print("\n".join(line.rstrip() for line in text.get().splitlines()))
    return 0


def _show(console: Console, found: Inspection) -> None:
    from rich.text import Text

    console.print(Text(found.source, "bold"))
    console.print(Text(_headline(found)))
    console.print()
    console.print(_table(found.parts))
    for refusal in dict.fromkeys(part.refusal for part in found.parts if part.refusal):
        names = ", ".join(part.name for part in found.parts if part.refusal == refusal)
        hint = " Here: --num-heads N." if "pass num_heads" in refusal else ""
        console.print()
        console.print(Text.assemble((f"{names} would not load: ", "red"), refusal, hint))
    if found.other or _remarks(found):
        console.print()
    if found.other:
        console.print(Text(f"besides: {_other(found.other)}"))
    for line in _remarks(found):
        console.print(Text(line, "dim"))


def _headline(found: Inspection) -> str:
    what = found.title or "of no family that torchjepa knows"
    if found.kind in ("run", "unfinished run"):
        what = f"{found.kind}, {found.path}: {what}"
    numbers = sum(part.num_values for part in found.parts)
    return f"{what} · {_FORMATS[found.format]}, {_number(found.disk_bytes)}B · {_number(numbers).strip()} numbers"


def _table(parts: Sequence[Part]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for column in ("part", "tensors", "parameters", "size", "dtype", "loads as"):
        table.add_column(column, justify="right" if column in ("tensors", "parameters", "size") else "left")
    for part in parts:
        table.add_row(
            Text(part.name),
            f"{part.num_tensors}",
            _number(part.num_values).strip(),
            f"{_number(part.num_bytes)}B",
            ", ".join(part.dtypes),
            _loads_as(part),
        )
    return table


def _loads_as(part: Part) -> Text:
    from rich.text import Text

    if part.network is not None:
        return Text(f"{part.network['architecture']}: {_arguments(part.network['kwargs'])}", "green")
    return Text("no, see below", "red") if part.refusal else Text("not tried", "dim")


def _arguments(kwargs: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {'x'.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"
        for name, value in kwargs.items()
        if isinstance(value, (int, list, tuple)) and not isinstance(value, bool)
    )


def _remarks(found: Inspection) -> list[str]:
    """What is not loaded as it stands in the file, and what was assumed."""
    lines = [f"not needed: {line}" for part in found.parts for line in part.dropped]
    lines += [f"{part.name}: {_reshaped(part.reshaped)}" for part in found.parts if part.reshaped]
    return lines + [f"note: {note}" for note in found.notes]


def _reshaped(lines: Sequence[str]) -> str:
    if len(lines) == 1:
        return f"reshaped: {lines[0]}"
    return f"{len(lines)} tensors are reshaped or joined, {lines[0]} for one"


def _other(other: Mapping[str, Any]) -> str:
    few = [f"{name} {value!r}" for name, value in list(other.items())[:_MOST_OTHER]]
    more = f" and {len(other) - _MOST_OTHER} more" if len(other) > _MOST_OTHER else ""
    return ", ".join(few) + more


def _show_tensors(console: Console, parts: Sequence[Part]) -> None:
    from rich.table import Table
    from rich.text import Text

    shown: dict[Any, str] = {}
    for part in parts:
        console.print()
        console.print(Text(part.name, "bold"))
        if part.tensors in shown:
            console.print(Text(f"  the same names, shapes and dtypes as {shown[part.tensors]}"))
            continue
        shown[part.tensors] = part.name
        table = Table.grid(padding=(0, 3, 0, 0))
        for tensor in part.tensors:
            shape = " x ".join(map(str, tensor.shape)) or "one number"
            number = f"{tensor.number} times" if tensor.number > 1 else ""
            table.add_row(Text(f"  {tensor.name}"), Text(shape), tensor.dtype, number)
        console.print(table)


def _number(value: float) -> str:
    for size, unit in _UNITS:
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.0f} "

"""jepa models: list the released JEPA weights: size, input, data, licence, file."""

from __future__ import annotations

import dataclasses
import difflib
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from torchjepa.hub.catalog import Release, WeightFile

_HEAD = ("name", "encoder", "parameters", "input", "trained on", "licence", "on the hub")
_SIZES = {"B": "base", "L": "large", "H": "huge", "g": "giant", "G": "gigantic"}


@dataclasses.dataclass(frozen=True)
class ModelsCommand:
    """List the released I-JEPA, V-JEPA, V-JEPA 2, V-JEPA 2-AC and V-JEPA 2.1 weights.

    A name shows all that is known of one model; other words search name, family, size, data, licence and files.
    """

    words: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """A model's name, or words that all must occur."""
    family: str | None = None
    """Only this family: I-JEPA, V-JEPA, "V-JEPA 2", "V-JEPA 2-AC", "V-JEPA 2 probe", "V-JEPA 2.1"; vjepa2 will do."""
    takes: Literal["images", "videos"] | None = None
    """Only encoders of images, or only those of videos."""
    max_parameters: float | None = None
    """Only encoders of at most so many parameters, 4e8 say; those of unknown size are left out."""
    commercial: bool = False
    """Only weights whose licence does not forbid commercial use."""
    json: bool = False
    """Print JSON, all that is known of each."""


def run(argv: Sequence[str]) -> int:
    """Run `jepa models` with these arguments."""
    command = tyro.cli(ModelsCommand, args=list(argv), prog="jepa models")
    from torchjepa.hub.catalog import RELEASES

    found = [release for release in RELEASES if _fits(command, release)]
    named = [release for release in found if (release.name,) == command.words]
    if not found:
        raise ValueError(_nothing(command, RELEASES))
    if command.json:
        print(json.dumps([_as_json(release) for release in named or found], indent=2))
    elif named or len(found) == 1:
        print("\n".join(_card((named or found)[0])))
    else:
        print("\n".join(_listing(found)))
    return 0


def _fits(command: ModelsCommand, release: Release) -> bool:
    places = [file.source for file in release.files]
    size = f"{release.size} {_SIZES.get(release.size[4:5], '')}"
    text = " ".join([release.name, release.family, size, release.data, *release.licences, *places])
    return (
        all(word.lower() in text.lower() for word in command.words)
        and (command.family is None or _bare(command.family) == _bare(release.family))
        and (command.takes is None or (command.takes == "videos") == _takes_videos(release))
        and (command.max_parameters is None or (release.parameters or float("inf")) <= command.max_parameters)
        and (not command.commercial or release.commercial)
    )


def _bare(family: str) -> str:
    return "".join(filter(str.isalnum, family.lower()))


def _takes_videos(release: Release) -> bool:
    return release.family != "I-JEPA"


def _nothing(command: ModelsCommand, releases: Iterable[Release]) -> str:
    names = [release.name for release in releases]
    near = [name for word in command.words for name in difflib.get_close_matches(word, names, n=1)]
    families = dict.fromkeys(release.family for release in releases)
    hint = f" Did you mean {near[0]}?" if near else f" The families are {', '.join(families)}."
    return f"No released model fits.{hint} `jepa models` lists all."


def _as_json(release: Release) -> dict[str, Any]:
    return dataclasses.asdict(release) | {"commercial": release.commercial}


def _listing(releases: Sequence[Release]) -> list[str]:
    rows = [_HEAD, *(_row(release) for release in releases)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    if sys.stdout.isatty() and sum(widths) + 2 * len(widths) > shutil.get_terminal_size().columns:
        rows = [row[:-1] for row in rows]  # where to find them is told of each alone
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    restricted = sum(not release.commercial for release in releases)
    notes = [
        f"{len(releases)} models. `jepa models NAME` tells more; torchjepa.load takes a hub id or a downloaded file."
    ]
    if restricted:
        notes.append(f"CC-BY-NC-4.0 ({restricted} of them) forbids commercial use.")
    return [lines[0], "-" * len(lines[0]), *lines[1:], "", *notes]


def _row(release: Release) -> tuple[str, ...]:
    hub = [file.source for file in release.files if file.layout == "transformers"]
    return (
        release.name,
        release.size,
        _parameters(release),
        _input(release),
        release.data,
        " / ".join(release.licences),
        hub[0] if hub else "-",
    )


def _card(release: Release) -> list[str]:
    use = "" if release.commercial else " (no commercial use)"
    lines = [
        f"{release.name}: {release.family} {release.size}",
        f"  encoder     {_parameters(release, exact=True)} parameters",
        f"  input       {_input(release)}",
        f"  trained on  {release.data}",
        f"  licence     {' / '.join(release.licences)}{use}",
    ]
    lines += [f"  note        {release.note}"] if release.note else []
    return [*lines, *(line for file in release.files for line in _file(file))]


def _file(file: WeightFile) -> list[str]:
    size = "size unknown" if file.gigabytes is None else f"{file.gigabytes} GB"
    return [
        "",
        f"  {file.source}",
        f"    {file.layout} layout, {file.file}, {size}",
        f"    sha256 {file.sha256 or 'unknown'}",
        f"    {file.licence}: {file.licence_from}",
    ]


def _input(release: Release) -> str:
    frames = "? x " if release.frames is None and _takes_videos(release) else ""
    frames = f"{release.frames} x " if release.frames else frames
    return f"{frames}{release.resolution} x {release.resolution}"


def _parameters(release: Release, *, exact: bool = False) -> str:
    if release.parameters is None:
        return "unknown"
    return f"{release.parameters:,}" if exact else f"{release.parameters / 1e6:.0f} M"

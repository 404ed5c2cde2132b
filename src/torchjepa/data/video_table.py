"""Tables of videos: a CSV file whose lines name a file, a piece of it and what it shows."""

from __future__ import annotations

import csv
import difflib
import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchjepa.data.errors import DataError
from torchjepa.data.index import Names
from torchjepa.data.source import Task

_COLUMNS = ("path", "start", "end", "label")
_TASK = "label_"


@dataclass(frozen=True)
class VideoTable:
    """What a table says.

    Args:
        names: the paths, as they are written.
        pieces: start and end of each sample in seconds, float64 `[n, 2]`; the end is infinite where none is given.
        tasks: the label columns by name, `label` for the plain one.
        digest: SHA-256 of the file.
    """

    names: Names
    pieces: NDArray[np.float64]
    tasks: dict[str, Task]
    digest: str


def read_table(path: str) -> VideoTable:
    """Read a table of videos (see `VideoTableSource` for what it may hold).

    Args:
        path: the CSV file.

    Raises:
        DataError: the file cannot be read, or a line is wrong: says which line and which column.
    """
    content = _content(path)
    rows = _rows(path, content)
    if not rows:
        raise DataError(f"{path!r} is empty. Give a first line of columns: path, start, end, label.")
    columns, rows = _columns(path, rows)
    cells = {name: [row[place] for _, row in rows] for place, name in enumerate(columns)}
    lines = [line for line, _ in rows]
    if not rows:
        raise DataError(f"{path!r} names columns and no videos.")
    for line, name in zip(lines, cells["path"], strict=True):
        if not name:
            raise DataError(f"{path!r}, line {line}, column path: empty, expected a video file.")
    tasks = {
        name.removeprefix(_TASK): _task(values)
        for name, values in cells.items()
        if name == "label" or name.startswith(_TASK)
    }
    pieces = _pieces(path, lines, cells)
    return VideoTable(Names.of(cells["path"]), pieces, tasks, hashlib.sha256(content.encode()).hexdigest())


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return file.read()
    except OSError as error:
        raise DataError(f"{path!r} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path!r} is no text in UTF-8 ({error.reason} at byte {error.start}).") from error


def _rows(path: str, content: str) -> list[tuple[int, list[str]]]:
    first = next((line for line in content.splitlines() if line.strip()), "")
    delimiter = next((each for each in (",", "\t") if each in first), " ")
    reader = csv.reader(content.splitlines(), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if delimiter == " ":
                cells = [cell for cell in cells if cell]  # a run of spaces parts once
            if any(cells):
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise DataError(f"{path!r}, line {reader.line_num}: {error}.") from error
    return rows


def _columns(path: str, rows: list[tuple[int, list[str]]]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    line, first = rows[0]
    names = [cell.lower() for cell in first]
    if "path" in names:
        _check_columns(path, line, names)
        rows = rows[1:]
    elif len(first) <= 2:
        names = ["path", "label"][: len(first)]
    else:
        raise DataError(
            f"{path!r}, line {line}: {len(first)} values and no column path. Give a first line of columns: path, "
            "start, end, label, label_NAME."
        )
    for line, row in rows:
        if len(row) != len(names):
            raise DataError(
                f"{path!r}, line {line}: {len(row)} values, expected {len(names)} ({', '.join(names)}); put a value "
                "that holds a separator in double quotes."
            )
    return names, rows


def _check_columns(path: str, line: int, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path!r}, line {line}: column {name!r} is there {names.count(name)} times.")
        if name not in _COLUMNS and not (name.startswith(_TASK) and name != _TASK):
            near = difflib.get_close_matches(name, _COLUMNS, n=1)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else f"rename it to {_TASK}{name} if it labels the videos."
            )
            raise DataError(
                f"{path!r}, line {line}: unknown column {name!r}, expected path, start, end, label or {_TASK}NAME; "
                f"{hint}"
            )


def _pieces(path: str, lines: list[int], cells: dict[str, list[str]]) -> NDArray[np.float64]:
    empty = [""] * len(lines)
    starts = _seconds(path, lines, "start", cells.get("start", empty), 0.0)
    ends = _seconds(path, lines, "end", cells.get("end", empty), math.inf)
    for line, start, end in zip(lines, starts, ends, strict=True):
        if not start < end:
            raise DataError(
                f"{path!r}, line {line}, column end: {end:g}, expected more than start, {start:g}."
            )
    return np.asarray([starts, ends], dtype=np.float64).T


def _seconds(path: str, lines: list[int], name: str, values: list[str], default: float) -> list[float]:
    found = []
    for line, value in zip(lines, values, strict=True):
        try:
            seconds = float(value) if value else default
        except ValueError:
            seconds = math.nan
        if not seconds >= 0 or (value and math.isinf(seconds)):
            raise DataError(
                f"{path!r}, line {line}, column {name}: {value!r}, expected seconds of at least 0, or nothing."
            )
        found.append(seconds)
    return found


def _task(values: list[str]) -> Task:
    names = set(values) - {""}
    # Numbers by their value: a class of V-JEPA's lists is then its own index.
    numeric = all(name.isdecimal() for name in names)
    classes = tuple(sorted(names, key=(lambda name: (int(name), name)) if numeric else None))
    place = {"": -1, **{name: index for index, name in enumerate(classes)}}
    return Task(classes, np.asarray([place[value] for value in values], dtype=np.int64))

"""Features from a file, anybody's: .npy, .npz, .parquet or .csv, an even sample where they are many."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAMES = (
    "encoder",
    "projector",
    "tokens",
    "time",
    "prediction",
    "target",
    "context",
    "target_tokens",
    "views",
)
_BESIDE = ("ids", "labels")
_CHUNK_BYTES = 1 << 24
_CSV_ROWS = 1024


@dataclass(frozen=True)
class FeatureFile:
    """Features as they were read.

    Args:
        arrays: name (one of `encoder`, `projector`, `tokens`, `time`, `prediction`, `target`, `context`,
            `target_tokens`, `views`) to float32 or float64 `[n, d]` or `[b, t, d]`.
        notes: what a reader of a verdict should know: what was left out.
    """

    arrays: Mapping[str, NDArray[np.floating[Any]]]
    notes: tuple[str, ...] = ()


def read_features(path: str | Path, *, max_samples: int = 4096, max_sequences: int = 256) -> FeatureFile:
    """Read features, at most so many samples of them, evenly spaced over the file; never the whole into memory.

    `.npy` holds `[n, d]`, or tokens `[b, t, d]`; `.npz` what `write_features` writes (the array `features`), a
    single array, or arrays by the names in `FeatureFile`; `.parquet` a column `features` of lists, or numeric
    columns; `.csv` numeric columns, with a header or without. Columns `id` and `label` are no features.
    Nothing pickled is read.

    Args:
        path: the file; its ending says the format.
        max_samples: most rows of an array `[n, d]`.
        max_sequences: most rows of an array `[b, t, d]`.

    Raises:
        ValueError: another ending, no such file, a damaged one, not floating point, of another rank, or empty.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path, _Limits], FeatureFile]] = {
        ".npy": _read_npy,
        ".npz": _read_npz,
        ".parquet": _read_parquet,
        ".csv": _read_csv,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"read_features: {path} must end in {', '.join(readers)}, which says the format.")
    if not path.is_file():
        raise ValueError(f"read_features: there is no file {path}.")
    try:
        read = reader(path, _Limits(max_samples, max_sequences))
        return FeatureFile({name: _as_float(array) for name, array in read.arrays.items()}, read.notes)
    except (OSError, EOFError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise ValueError(f"read_features: {path} cannot be read ({error}).") from None


@dataclass(frozen=True)
class _Limits:
    samples: int
    sequences: int

    def of(self, ndim: int) -> int:
        return self.samples if ndim == 2 else self.sequences


class _EvenRows:
    """Every k-th row of what is added, k doubled whenever there are more than `most`."""

    def __init__(self, most: int) -> None:
        self._most, self._every = most, 1
        self._kept: list[NDArray[Any]] = []
        self.num = 0

    def add(self, rows: NDArray[Any]) -> None:
        # A copy, or the whole chunk stays in memory for a few of its rows.
        self._kept.append(rows[-self.num % self._every :: self._every].copy())
        self.num += len(rows)
        if sum(map(len, self._kept)) > self._most:
            kept = self.all()
            while len(kept) > self._most:
                kept, self._every = kept[::2], 2 * self._every
            self._kept = [kept]

    def all(self) -> NDArray[Any]:
        return np.concatenate(self._kept)


def _read_npy(path: Path, limits: _Limits) -> FeatureFile:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"read_features: {path} cannot be read ({error}).") from None
    _check(path, "the array", array.shape, array.dtype)
    most, n = limits.of(array.ndim), len(array)
    if n <= most:
        return FeatureFile({_bare_name(array.ndim): np.array(array)})
    return FeatureFile({_bare_name(array.ndim): array[np.arange(most) * n // most]}, (_sampled(most, n),))


def _read_npz(path: Path, limits: _Limits) -> FeatureFile:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info.filename for info in archive.infolist()}
        chosen = _choose(path, list(members))
        arrays, notes = {}, []
        for name, member in chosen.items():
            rows = _EvenRows(0)
            for number, chunk in enumerate(_stream(path, archive, members[member], member)):
                if number == 0:
                    rows = _EvenRows(limits.of(chunk.ndim))
                rows.add(chunk)
            kept = rows.all()
            arrays[name or _bare_name(kept.ndim)] = kept
            if len(kept) < rows.num:
                notes.append(f"{member}: {_sampled(len(kept), rows.num)}")
    left_out = [name for name in members if name not in (*chosen.values(), *_BESIDE)]
    if left_out:
        notes.append(f"Left out: {', '.join(left_out)}, which name no features.")
    return FeatureFile(arrays, tuple(notes))


def _choose(path: Path, members: list[str]) -> dict[str, str]:
    """Feature name to member; the name "" lets the rank decide."""
    named = {name: name for name in members if name in NAMES}
    if "features" in members and "encoder" not in named:
        named[""] = "features"
    candidates = [name for name in members if name not in _BESIDE]
    if not named and len(candidates) == 1:
        return {"": candidates[0]}
    if not named:
        raise ValueError(
            f"read_features: {path} holds the arrays {', '.join(members) or 'none'}; expected a single one, "
            f"`features`, or some of {', '.join(NAMES)}."
        )
    return named


def _stream(path: Path, archive: zipfile.ZipFile, member: str, name: str) -> Iterator[NDArray[Any]]:
    """A member's rows in chunks, so that an archive of any size can be read."""
    with archive.open(member) as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = read_header(file)
        except (ValueError, KeyError) as error:
            raise ValueError(f"read_features: {path}, {name}: not an array ({error}).") from None
        _check(path, name, shape, dtype)
        if fortran:
            raise ValueError(
                f"read_features: {path}, {name} is stored by columns (Fortran order); save it with "
                "np.ascontiguousarray."
            )
        row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
        step = max(1, _CHUNK_BYTES // row_bytes)
        for start in range(0, shape[0], step):
            num = min(step, shape[0] - start)
            data = file.read(num * row_bytes)
            if len(data) < num * row_bytes:
                raise ValueError(f"read_features: {path}, {name} ends in the middle.")
            yield np.frombuffer(data, dtype).reshape(num, *shape[1:])


def _read_parquet(path: Path, limits: _Limits) -> FeatureFile:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise ValueError(
            "read_features: .parquet needs pyarrow: pip install 'torchjepa[parquet]'; or give .npy, .npz, .csv."
        ) from None
    try:
        file = parquet.ParquetFile(path)
    except arrow.ArrowException as error:
        raise ValueError(f"read_features: {path} cannot be read ({error}).") from None
    with file:
        schema = file.schema_arrow
        lists = "features" in schema.names
        columns = ["features"] if lists else [each.name for each in schema if _is_feature(arrow, each)]
        if not columns:
            names = ", ".join(f"{each.name} ({each.type})" for each in schema)
            raise ValueError(
                f"read_features: {path} has the columns {names}; expected `features` (lists of numbers) or "
                "floating-point columns."
            )
        rows = _EvenRows(limits.samples)
        for batch in file.iter_batches(columns=columns):
            if lists:
                rows.add(_matrix(path, batch.column(0)))
            else:
                values = [batch.column(i).to_numpy(zero_copy_only=False) for i in range(len(columns))]
                rows.add(np.stack(values, axis=1).astype(np.float64))
    return _table(path, rows)


def _is_feature(arrow: Any, column: Any) -> bool:
    return column.name not in ("id", "label") and arrow.types.is_floating(column.type)


def _matrix(path: Path, column: Any) -> NDArray[Any]:
    values = column.to_numpy(zero_copy_only=False)
    widths = {-1 if row is None else len(row) for row in values}
    if len(widths) > 1 or -1 in widths:
        raise ValueError(f"read_features: {path}: the lists in `features` are of different lengths.")
    matrix = np.stack(values) if len(values) else np.zeros((0, 1), np.float32)
    _check(path, "features", (1, *matrix.shape[1:]), matrix.dtype)
    return matrix


def _read_csv(path: Path, limits: _Limits) -> FeatureFile:
    with path.open(newline="", encoding="utf-8") as file:
        lines = (line for line in csv.reader(file) if line)
        first = next(lines, None)
        if first is None:
            raise ValueError(f"read_features: {path} is empty.")
        header = None if all(map(_is_number, first)) else [name.strip() for name in first]
        if header is None:
            lines = chain([first], lines)
        wanted = [i for i in range(len(first)) if header is None or header[i] not in ("id", "label")]
        if not wanted:
            raise ValueError(f"read_features: {path} has no column of features.")
        rows, number = _EvenRows(limits.samples), 1 if header is None else 2
        while chunk := list(islice(lines, _CSV_ROWS)):
            rows.add(_numbers(path, chunk, wanted, len(first), number))
            number += len(chunk)
    return _table(path, rows)


def _numbers(
    path: Path, lines: list[list[str]], wanted: list[int], width: int, number: int
) -> NDArray[np.float64]:
    for offset, line in enumerate(lines):
        if len(line) != width:
            raise ValueError(
                f"read_features: {path}, line {number + offset}: {len(line)} values, the first line has {width}."
            )
    try:
        return np.array([[float(line[i]) for i in wanted] for line in lines])
    except ValueError:
        offset, i = next((k, i) for k, line in enumerate(lines) for i in wanted if not _is_number(line[i]))
        raise ValueError(
            f"read_features: {path}, line {number + offset}: {lines[offset][i]!r} in column {i + 1} is no number."
        ) from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _table(path: Path, rows: _EvenRows) -> FeatureFile:
    if not rows.num:
        raise ValueError(f"read_features: {path} has no row of features.")
    kept = rows.all()
    notes = (_sampled(len(kept), rows.num),) if len(kept) < rows.num else ()
    return FeatureFile({"encoder": kept}, notes)


def _check(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    where = f"read_features: {path}, {name}"
    if dtype.hasobject:
        raise ValueError(f"{where} holds Python objects, which are not read; save an array of numbers.")
    if dtype.kind != "f":
        raise ValueError(f"{where} is {dtype}, expected floating point; convert it with .astype('float32').")
    if len(shape) not in (2, 3):
        raise ValueError(f"{where} has shape {shape}, expected [n, d], or tokens [b, t, d].")
    if 0 in shape:
        raise ValueError(f"{where} has shape {shape}: there are no features in it.")


def _as_float(array: NDArray[Any]) -> NDArray[np.floating[Any]]:
    # Half precision and foreign byte orders are not for arithmetic.
    return np.ascontiguousarray(array, np.float64 if array.dtype.itemsize > 4 else np.float32)


def _bare_name(ndim: int) -> str:
    return "encoder" if ndim == 2 else "tokens"


def _sampled(num: int, total: int) -> str:
    return f"{num:,} of {total:,} samples, evenly spaced."

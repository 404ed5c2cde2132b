"""Features on disk, a batch at a time: .npz, .parquet or .csv."""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from torchjepa.evaluation.features import Features

Add = Callable[[Features, list[str] | None], None]


def write_features(
    path: str | Path, chunks: Iterable[Features], *, names: Callable[[int], str] | None = None
) -> int:
    """Write features as they come, so that a million samples fit in memory; whole or not at all.

    `.npz` holds `ids` `[n]`, `labels` `[n]`, `features` float32 `[n, d]` and, if asked for, `names` `[n]`;
    `.parquet` one row a sample with `id`, `label`, `name` and a list `features` (needs pyarrow); `.csv`
    `id`, `label`, `name` and a column `f0`, `f1`, ... for each dimension.

    Args:
        path: the file; its ending says the format.
        chunks: features batch by batch, what `stream_features` yields.
        names: from a sample's id to its name, its file say; left out where `None`.

    Returns:
        Number of samples written.

    Raises:
        ValueError: an ending other than these three, a missing folder, nothing to write, batches of different
            widths, or no pyarrow.
    """
    path = Path(path)
    writers = {".npz": _npz, ".parquet": _parquet, ".csv": _csv}
    if path.suffix.lower() not in writers:
        raise ValueError(f"write_features: {path} must end in {', '.join(writers)}, which says the format.")
    if not path.parent.is_dir():
        raise ValueError(f"write_features: there is no folder {path.parent}; create it first.")
    chunks = iter(chunks)
    first = next(chunks, None)
    if first is None:
        raise ValueError("write_features: there is nothing to write; is the data set empty?")
    num, dim = 0, first.features.shape[1]
    write = writers[path.suffix.lower()]
    with _appearing_whole(path) as partial, write(partial, dim, names is not None) as add:
        for chunk in chain([first], chunks):
            if chunk.features.shape[1] != dim:
                raise ValueError(
                    f"write_features: batches of {dim} and {chunk.features.shape[1]} dimensions."
                )
            add(chunk, None if names is None else [names(index) for index in chunk.ids.tolist()])
            num += len(chunk)
    return num


@contextmanager
def _appearing_whole(path: Path) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _npz(path: Path, dim: int, named: bool) -> Iterator[Add]:
    columns: dict[str, list[Any]] = {key: [] for key in ("ids", "labels", *(["names"] if named else []))}
    # The number of samples stands in front of an array and is known last: features wait in a file.
    with tempfile.TemporaryFile(dir=path.parent) as waiting:

        def add(chunk: Features, names: list[str] | None) -> None:
            waiting.write(chunk.features.numpy().astype("<f4", copy=False).tobytes())
            parts = (chunk.ids.numpy(), chunk.labels.numpy(), np.array(names or [], dtype=np.str_))
            for column, part in zip(columns.values(), parts):
                column.append(part)

        yield add
        arrays = {key: np.concatenate(parts) for key, parts in columns.items()}
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(arrays["ids"]), dim)}
        waiting.seek(0)
        with zipfile.ZipFile(path, "w") as archive:
            for key, array in arrays.items():
                with archive.open(f"{key}.npy", "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            with archive.open("features.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                shutil.copyfileobj(waiting, member, 1 << 20)


@contextmanager
def _csv(path: Path, dim: int, named: bool) -> Iterator[Add]:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", *(["name"] if named else []), *(f"f{i}" for i in range(dim))])

        def add(chunk: Features, names: list[str] | None) -> None:
            heads = [chunk.ids.tolist(), chunk.labels.tolist(), *([names] if names is not None else [])]
            # As text numpy gives the fewest digits that read back as the same float32.
            digits = chunk.features.numpy().astype(np.str_)
            writer.writerows([*head, *row] for *head, row in zip(*heads, digits))

        yield add


@contextmanager
def _parquet(path: Path, dim: int, named: bool) -> Iterator[Add]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise ValueError(
            "write_features: .parquet needs pyarrow: pip install 'torchjepa[parquet]'; or write .npz or .csv."
        ) from None
    columns = [
        ("id", arrow.int64()),
        ("label", arrow.int64()),
        *([("name", arrow.string())] if named else []),
    ]
    schema = arrow.schema([*columns, ("features", arrow.list_(arrow.float32(), dim))])
    with parquet.ParquetWriter(path, schema) as writer:

        def add(chunk: Features, names: list[str] | None) -> None:
            flat = arrow.array(chunk.features.numpy().reshape(-1))
            lists = arrow.FixedSizeListArray.from_arrays(flat, dim)
            heads = [arrow.array(chunk.ids.numpy()), arrow.array(chunk.labels.numpy())]
            heads += [] if names is None else [arrow.array(names, type=arrow.string())]
            writer.write_table(arrow.Table.from_arrays([*heads, lists], schema=schema))

        yield add

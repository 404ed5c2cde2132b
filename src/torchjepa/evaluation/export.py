"""Features on disk, a batch at a time: .npz, .parquet or .csv."""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from torchjepa.evaluation.features import Features

Column = NDArray[np.int64] | NDArray[np.str_]
Add = Callable[[Column, Column, NDArray[np.float32]], None]


def write_features(
    path: str | Path,
    chunks: Iterable[Features],
    *,
    name: Callable[[int], str] | None = None,
    classes: Sequence[str] | None = None,
) -> int:
    """Write features as they come, so that a million samples fit in memory; whole or not at all.

    `.npz` holds the arrays `ids` `[n]`, `labels` `[n]` and `features` float32 `[n, d]`; `.parquet` the
    columns `id`, `label` and `features`, a list of d float32 (needs pyarrow); `.csv` the columns `id`,
    `label`, `f0`, `f1`, ...

    Args:
        path: the file; its ending says the format.
        chunks: features batch by batch, what `stream_features` yields.
        name: from a sample's index to what stands in `ids`, its file say; `None` writes the index itself.
        classes: what stands in `labels` for each class, empty for a sample without one; `None` writes the
            index, -1 for a sample without one.

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
    with _appearing_whole(path) as partial, write(partial, dim) as add:
        for chunk in chain([first], chunks):
            if chunk.features.shape[1] != dim:
                raise ValueError(
                    f"write_features: batches of {dim} and {chunk.features.shape[1]} dimensions."
                )
            add(_ids(chunk, name), _labels(chunk, classes), chunk.features.numpy())
            num += len(chunk)
    return num


def _ids(chunk: Features, name: Callable[[int], str] | None) -> Column:
    return (
        chunk.ids.numpy()
        if name is None
        else np.array([name(index) for index in chunk.ids.tolist()], np.str_)
    )


def _labels(chunk: Features, classes: Sequence[str] | None) -> Column:
    if classes is None:
        return chunk.labels.numpy()
    return np.array([classes[label] if label >= 0 else "" for label in chunk.labels.tolist()], np.str_)


@contextmanager
def _appearing_whole(path: Path) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _npz(path: Path, dim: int) -> Iterator[Add]:
    columns: dict[str, list[Column]] = {"ids": [], "labels": []}
    # The number of samples stands in front of an array and is known last: features wait in a file.
    with tempfile.TemporaryFile(dir=path.parent) as waiting:

        def add(ids: Column, labels: Column, features: NDArray[np.float32]) -> None:
            waiting.write(features.astype("<f4", copy=False).tobytes())
            columns["ids"].append(ids)
            columns["labels"].append(labels)

        yield add
        arrays = {key: np.concatenate(parts) for key, parts in columns.items()}
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(arrays["ids"]), dim)}
        waiting.seek(0)
        with zipfile.ZipFile(path, "w") as archive:
            for key, array in arrays.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            with archive.open("features.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                shutil.copyfileobj(waiting, member, 1 << 20)


@contextmanager
def _csv(path: Path, dim: int) -> Iterator[Add]:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", *(f"f{i}" for i in range(dim))])

        def add(ids: Column, labels: Column, features: NDArray[np.float32]) -> None:
            # As text numpy gives the fewest digits that read back as the same float32.
            digits = features.astype(np.str_)
            writer.writerows([*head, *row] for *head, row in zip(ids.tolist(), labels.tolist(), digits))

        yield add


@contextmanager
def _parquet(path: Path, dim: int) -> Iterator[Add]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise ValueError(
            "write_features: .parquet needs pyarrow: pip install 'torchjepa[parquet]'; or write .npz or .csv."
        ) from None
    with ExitStack() as stack:
        writer = None

        def add(ids: Column, labels: Column, features: NDArray[np.float32]) -> None:
            nonlocal writer
            lists = arrow.FixedSizeListArray.from_arrays(arrow.array(features.reshape(-1)), dim)
            columns = [arrow.array(ids.tolist()), arrow.array(labels.tolist()), lists]
            table = arrow.Table.from_arrays(columns, names=["id", "label", "features"])
            writer = writer or stack.enter_context(parquet.ParquetWriter(path, table.schema))
            writer.write_table(table)

        yield add

"""Features from files: every format, an even sample of many, and one line for what cannot be read."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch

from torchjepa.evaluation import Features, write_features
from torchjepa.evaluation.read import read_features

X = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)


def write(path: Path, x: np.ndarray = X) -> Path:
    if path.suffix == ".npy":
        np.save(path, x)
    else:
        n = len(x)
        part = Features(torch.from_numpy(x), torch.zeros(n, dtype=torch.int64), torch.arange(n))
        write_features(path, [part[:7], part[7:]], name=lambda i: f"cat/{i}.jpg", classes=["a, b"])
    return path


@pytest.mark.parametrize("ending", ["npy", "npz", "parquet", "csv"])
def test_what_was_written_is_read(tmp_path: Path, ending: str) -> None:
    read = read_features(write(tmp_path / f"f.{ending}"))
    assert (list(read.arrays), read.notes) == (["encoder"], ())
    np.testing.assert_allclose(read.arrays["encoder"], X, rtol=1e-6)


@pytest.mark.parametrize("ending", ["npy", "npz", "parquet", "csv"])
def test_of_many_an_even_sample_is_read_and_that_is_said(tmp_path: Path, ending: str) -> None:
    x = np.repeat(np.arange(4000.0, dtype=np.float32)[:, None], 3, axis=1)
    read = read_features(write(tmp_path / f"f.{ending}", x), max_samples=100)
    kept = read.arrays["encoder"][:, 0]
    assert 50 <= len(kept) <= 100
    assert set(np.diff(kept)) == {kept[1]}
    assert kept[0] == 0
    assert kept[-1] >= 3900
    assert f"{len(kept)} of 4,000 samples, evenly spaced" in read.notes[0]


def test_large_members_are_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchjepa.evaluation.read._CHUNK_BYTES", 64)
    read = read_features(write(tmp_path / "f.npz"), max_samples=20)
    np.testing.assert_array_equal(read.arrays["encoder"], X[::4])


def test_three_axes_are_tokens_and_fewer_of_them_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.ones((600, 3, 2), np.float16))
    read = read_features(tmp_path / "t.npy")
    assert read.arrays["tokens"].shape == (256, 3, 2)
    assert read.arrays["tokens"].dtype == np.float32
    np.savez(tmp_path / "t.npz", anything=np.ones((9, 3, 2)))
    assert read_features(tmp_path / "t.npz").arrays["tokens"].shape == (9, 3, 2)


def test_names_of_an_archive_decide(tmp_path: Path) -> None:
    tokens = np.ones((5, 3, 2))
    np.savez(tmp_path / "f.npz", encoder=X, time=tokens, labels=np.arange(5), odd=X)
    read = read_features(tmp_path / "f.npz")
    assert {name: value.shape for name, value in read.arrays.items()} == {
        "encoder": (50, 4),
        "time": (5, 3, 2),
    }
    assert read.notes == ("Left out: odd, which name no features.",)
    np.savez_compressed(tmp_path / "g.npz", features=X, projector=2 * X)
    np.testing.assert_array_equal(read_features(tmp_path / "g.npz").arrays["projector"], 2 * X)


def test_anybodys_tables(tmp_path: Path) -> None:
    (tmp_path / "bare.csv").write_text("1,2.5\n3,4e-3\n\n5,nan\n")
    np.testing.assert_array_equal(
        read_features(tmp_path / "bare.csv").arrays["encoder"], [[1, 2.5], [3, 4e-3], [5, np.nan]]
    )
    with (tmp_path / "head.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["x", "label", "y"], [1, "a, b", 2], [3, "c", 4]])
    np.testing.assert_array_equal(read_features(tmp_path / "head.csv").arrays["encoder"], [[1, 2], [3, 4]])
    table = arrow.table({"name": ["a", "b"], "x": [1.0, 2.0], "count": [1, 2], "y": [3.0, 4.0]})
    parquet.write_table(table, tmp_path / "t.parquet")
    np.testing.assert_array_equal(read_features(tmp_path / "t.parquet").arrays["encoder"], [[1, 3], [2, 4]])


ARRAYS: list[tuple[Any, str]] = [
    (np.ones(3), r"has shape \(3,\), expected \[n, d\], or tokens \[b, t, d\]"),
    (np.ones((2, 2, 2, 2)), r"has shape \(2, 2, 2, 2\), expected"),
    (np.ones((3, 2), np.int32), r"is int32, expected floating point; convert it with .astype\('float32'\)"),
    (np.ones((3, 2), complex), "is complex128, expected floating point"),
    (np.ones((0, 2)), "(there are no features in it|cannot mmap)"),
]


@pytest.mark.parametrize(("array", "message"), ARRAYS)
@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_what_are_no_features_is_said(tmp_path: Path, array: Any, message: str, ending: str) -> None:
    path = tmp_path / f"f.{ending}"
    np.save(path, array) if ending == "npy" else np.savez(path, array)
    with pytest.raises(ValueError, match=message) as caught:
        read_features(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_nothing_pickled_is_read(tmp_path: Path, ending: str) -> None:
    objects = np.array([[1.0, "a"]], dtype=object)
    path = tmp_path / f"f.{ending}"
    np.save(path, objects) if ending == "npy" else np.savez(path, objects)
    with pytest.raises(ValueError, match=r"(?i)python objects|object arrays"):
        read_features(path)


FILES = [
    ("f.txt", b"1 2", "must end in .npy, .npz, .parquet, .csv"),
    ("f.npy", b"1 2", "cannot be read"),
    ("f.npz", b"PK", "cannot be read"),
    ("f.parquet", b"PAR1", "cannot be read"),
    ("empty.csv", b"", "is empty"),
    ("head.csv", b"x,y\n", "has no row of features"),
    ("ids.csv", b"id,label\n1,2\n", "has no column of features"),
    ("word.csv", b"x,y\n1,2\n3,four\n", "line 3: 'four' in column 2 is no number"),
    ("torn.csv", b"1,2\n3\n", "line 2: 1 values, the first line has 2"),
    ("latin.csv", b"x,y\n\xff,2\n", "cannot be read"),
]


@pytest.mark.parametrize(("name", "content", "message"), FILES)
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_features(tmp_path / name)
    assert name in str(caught.value)


def test_archives_and_tables_without_features_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", a=X, b=X)
    with pytest.raises(ValueError, match="holds the arrays a, b; expected a single one"):
        read_features(tmp_path / "f.npz")
    parquet.write_table(arrow.table({"name": ["a"], "count": [1]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"has the columns name \(string\), count \(int64\)"):
        read_features(tmp_path / "t.parquet")
    parquet.write_table(arrow.table({"features": [[1.0], [1.0, 2.0]]}), tmp_path / "u.parquet")
    with pytest.raises(ValueError, match="are of different lengths"):
        read_features(tmp_path / "u.parquet")
    with pytest.raises(ValueError, match="there is no file"):
        read_features(tmp_path / "nowhere.npy")

"""Features on disk: what is read back is what was written, batch by batch."""

from __future__ import annotations

import csv
import sys
import weakref

import numpy as np
import pytest
import torch

from torchjepa.evaluation import Features, write_features


def chunks(sizes: tuple[int, ...] = (3, 4, 1), dim: int = 5) -> list[Features]:
    generator = torch.Generator().manual_seed(0)
    starts = np.cumsum([0, *sizes])
    return [
        Features(
            torch.randn(n, dim, generator=generator),
            torch.arange(n) % 3 - 1,
            torch.arange(start, start + n) * 10,
        )
        for n, start in zip(sizes, starts)
    ]


def joined(parts: list[Features]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(  # type: ignore[return-value]
        torch.cat([getattr(part, name) for part in parts]).numpy() for name in ("ids", "labels", "features")
    )


def read(path) -> tuple[list[str], list[str], np.ndarray]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return file["ids"].tolist(), file["labels"].tolist(), file["features"]
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        features = [[np.float32(row[f"f{i}"]) for i in range(5)] for row in rows]
        return [row["id"] for row in rows], [row["label"] for row in rows], np.array(features)
    table = pytest.importorskip("pyarrow.parquet").read_table(path).to_pydict()
    return table["id"], table["label"], np.array(table["features"], dtype=np.float32)


@pytest.mark.parametrize("ending", [".npz", ".csv", ".parquet", ".NPZ"])
@pytest.mark.parametrize("named", [False, True])
def test_what_is_read_back_is_what_was_written(tmp_path, ending, named):
    parts = chunks()
    path = tmp_path / f"features{ending}"
    words = {"name": lambda i: f"a/{i}, b.jpg", "classes": ("cat", "dög")} if named else {}
    assert write_features(path, iter(parts), **words) == 8
    ids, labels, features = read(path.rename(path.with_suffix(ending.lower())))
    wanted = joined(parts)
    np.testing.assert_array_equal(features, wanted[2])
    assert features.dtype == np.float32
    if named:
        assert ids == [f"a/{i}, b.jpg" for i in wanted[0]]
        assert labels == [("cat", "dög", "")[label] for label in wanted[1]]
    else:
        assert [int(i) for i in ids] == wanted[0].tolist()
        assert [int(label) for label in labels] == wanted[1].tolist()


@pytest.mark.parametrize("ending", [".npz", ".csv", ".parquet"])
def test_batches_are_not_kept(tmp_path, ending):
    seen: list[weakref.ref] = []
    most = 0

    def stream():
        nonlocal most
        for number in range(50):
            part = Features(torch.randn(2, 5), torch.zeros(2).long(), torch.arange(2) + 2 * number)
            seen.append(weakref.ref(part))
            most = max(most, sum(ref() is not None for ref in seen))
            yield part

    assert write_features(tmp_path / f"features{ending}", stream()) == 100
    assert most <= 3


@pytest.mark.parametrize("ending", [".npz", ".csv", ".parquet"])
def test_a_broken_stream_leaves_the_old_file_and_no_other(tmp_path, ending):
    path = tmp_path / f"features{ending}"
    write_features(path, chunks())
    before = path.read_bytes()

    def broken():
        yield chunks()[0]
        raise RuntimeError("the disk fell out")

    with pytest.raises(RuntimeError, match="fell out"):
        write_features(path, broken())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_errors_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"features\.txt must end in \.npz, \.parquet, \.csv"):
        write_features(tmp_path / "features.txt", chunks())
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere; create it"):
        write_features(tmp_path / "nowhere" / "features.npz", chunks())
    with pytest.raises(ValueError, match="nothing to write"):
        write_features(tmp_path / "features.npz", [])
    with pytest.raises(ValueError, match="batches of 5 and 6 dimensions"):
        write_features(tmp_path / "features.npz", [*chunks(), *chunks(dim=6)])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install 'torchjepa\[parquet\]'"):
        write_features(tmp_path / "features.parquet", chunks())
    assert list(tmp_path.iterdir()) == []

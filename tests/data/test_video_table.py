"""Tables of videos: every way to write them, and errors that name the line and the column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from torchjepa.data import DataError
from torchjepa.data.video_table import read_table


def _read(tmp_path: Path, text: str | bytes):
    path = tmp_path / "a.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(str(path))


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na b.mp4,2\nc.mp4,10\n",
        "\ufeffPath, Label\r\na b.mp4, 2\r\nc.mp4, 10",
        'path label\n"a b.mp4"  2\nc.mp4 10\n\n',
        '"a b.mp4" 2\nc.mp4 10',
        "a b.mp4,2\nc.mp4,10",
        "a b.mp4\t2\nc.mp4\t10",
        "label,path,start,end\n2,a b.mp4,,\n10,c.mp4,,\n",
    ],
)
def test_every_way_to_write_a_table(tmp_path: Path, text: str) -> None:
    table = _read(tmp_path, text)
    assert [table.names[i] for i in range(2)] == ["a b.mp4", "c.mp4"]
    assert table.tasks["label"].classes == ("2", "10")  # as numbers
    assert table.tasks["label"].labels.tolist() == [0, 1]
    assert table.pieces.tolist() == [[0, np.inf]] * 2


def test_a_list_of_paths_has_no_labels(tmp_path: Path) -> None:
    assert _read(tmp_path, "a.mp4\nb.mp4\n").tasks == {}
    assert _read(tmp_path, "path\na.mp4\n").tasks == {}


def test_names_sort_as_text_where_one_is_no_number(tmp_path: Path) -> None:
    assert _read(tmp_path, "a,10\nb,2\nc,x").tasks["label"].classes == ("10", "2", "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("path,label\n", "names columns and no videos"),
        ("path,lable\na,1\n", "line 1: unknown column 'lable'.*did you mean 'label'"),
        ("path,fps\na,1\n", "unknown column 'fps'.*label_fps"),
        ("path,label,label\na,1,1\n", "column 'label' is there 2 times"),
        ("a.mp4,0,1,x\n", "line 1: 4 values and no column path"),
        ("path,start\na,0\nb\n", "line 3: 1 values, expected 2"),
        ("path,start\na,0\nb,soon\n", "line 3, column start: 'soon', expected seconds"),
        ("path,start\na,-1\n", "line 2, column start: '-1'"),
        ("path,end\na,inf\n", "line 2, column end: 'inf'"),
        ("path,start,end\na,0,1\n\nb,2,2\n", "line 4, column end: 2, expected more than start, 2"),
        ("path,label\n,1\n", "line 2, column path: empty"),
        ('path,label\n"a,1\n', "line 2"),
        (b"path,label\n\xff\xfe,1\n", "no text in UTF-8"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _read(tmp_path, text)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b\.csv' cannot be read: No such file"):
        read_table(str(tmp_path / "b.csv"))

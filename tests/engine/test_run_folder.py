"""Run folders are made, opened and refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from torchjepa.engine import RunFolder, is_main_process, write_json


def test_create_writes_run_json_and_open_finds_it(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "runs" / "a", {"seed": 3})
    assert json.loads(folder.run_json.read_text()) == {"seed": 3}
    assert RunFolder.open(tmp_path / "runs" / "a") == folder


def test_the_paths_are_those_of_the_design() -> None:
    folder = RunFolder("runs/a")
    names = (
        "run_json",
        "metrics",
        "checkpoints",
        "encoder",
        "scores",
        "report",
        "tensorboard",
        "data_errors",
    )
    assert [str(getattr(folder, name).relative_to(folder.path)) for name in names] == [
        *("run.json", "metrics.jsonl", "checkpoints", "encoder", "scores.json", "report.html", "tensorboard"),
        "data_errors.jsonl",
    ]


def test_a_folder_with_a_run_is_refused(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "a", {})
    with pytest.raises(ValueError, match=r"a already holds a run.*--resume, or give another name"):
        RunFolder.create(tmp_path / "a", {})


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("")
    with pytest.raises(ValueError, match="is not an empty folder"):
        RunFolder.create(tmp_path, {})
    with pytest.raises(ValueError, match="is not an empty folder"):
        RunFolder.create(tmp_path / "photo.jpg", {})


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert RunFolder.create(tmp_path, {}).run_json.exists()


def test_open_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no run at .*nowhere: no such folder"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"is not a run: it holds no run\.json"):
        RunFolder.open(tmp_path)


def test_only_the_main_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert RunFolder.create(tmp_path / "a", {}).path == tmp_path / "a"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("environment", "is_main"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "4", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "1"}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"NODE_RANK": "0", "LOCAL_RANK": "0"}, True),
    ],
)
def test_which_process_is_main(
    environment: dict[str, str], is_main: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() is is_main


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}

"""Runs that stop and go on."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.conftest import Jepa
from tests.cli.tiny import DIGITS, final_weights, write_array
from torchjepa.engine import list_checkpoints

QUICK = [*DIGITS, "--data", "data.npz", "--no-judge", "--no-tensorboard"]


@pytest.fixture(autouse=True)
def data(empty_folder: Path) -> Path:
    return write_array(empty_folder / "data.npz")


@pytest.fixture
def copied(finished: Path, empty_folder: Path) -> Path:
    """A finished run of our own to change."""
    return shutil.copytree(finished, empty_folder / "runs" / "digits")


def test_a_taken_name_is_refused_with_the_words_that_help(jepa: Jepa, copied: Path) -> None:
    before = (copied / "run.json").read_text()
    done = jepa("train", *DIGITS)
    assert done.code == 2
    assert done.err == (
        "jepa: runs/digits already holds a run. Go on with it by --resume, or give the new one a --name.\n"
    )
    assert (copied / "run.json").read_text() == before


@pytest.mark.parametrize("argv", [["--resume"], ["--resume", "--name", "x"], ["vicreg-tiny", "--resume"]])
def test_there_must_be_a_run_to_resume(jepa: Jepa, argv: list[str]) -> None:
    done = jepa("train", *argv)
    assert (done.code, "There is no run at runs/" in done.err) == (2, True)


def test_a_finished_run_says_that_nothing_is_left(jepa: Jepa, copied: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()}
    done = jepa("train", "--resume")
    assert done.code == 0
    assert "is finished: all 3 steps are done" in done.err
    assert "All 3 steps are done and judged; nothing is left to do." in done.out
    after = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()}
    # It lies elsewhere now, and says so.
    assert {p for p in after if after[p] != before.get(p)} == {copied / "run.json"}
    assert json.loads((copied / "run.json").read_text())["settings"]["runs"] == "runs"


@pytest.mark.parametrize("missing", ["encoder", "scores.json", "report.html"])
def test_what_is_missing_of_a_finished_run_is_made_again(
    jepa: Jepa, copied: Path, finished: Path, missing: str
) -> None:
    path = copied / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert jepa("train", "--resume").code == 0
    assert path.exists()
    assert (copied / "scores.json").read_text() == (finished / "scores.json").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "9"], "leave out --steps,"),
        (["--lr", "0.5", "--seed", "3"], "leave out --seed, --lr,"),
        (["--regularizer.gamma", "2"], "leave out --regularizer.gamma,"),
        (["--crop-scale", "0.1", "1"], "leave out --crop-scale,"),
    ],
)
def test_a_run_goes_on_with_what_it_was_started_with(
    jepa: Jepa, copied: Path, flags: list[str], message: str
) -> None:
    before = (copied / "run.json").read_text()
    done = jepa("train", "--resume", *flags)
    assert (done.code, message in done.err) == (2, True)
    assert (copied / "run.json").read_text() == before


def test_data_may_have_moved_but_not_changed(jepa: Jepa, copied: Path, data: Path) -> None:
    moved = data.rename("moved.npz")
    assert jepa("train", "--resume", "--data", moved).code == 0
    assert json.loads((copied / "run.json").read_text())["settings"]["data"] == "moved.npz"
    with np.load(moved) as file:
        np.savez("other.npz", images=255 - file["images"], labels=file["labels"])
    done = jepa("train", "--resume", "--data", "other.npz")
    assert (done.code, "The train data are not those" in done.err) == (2, True)


def test_a_recipe_that_is_named_must_be_that_of_the_run(jepa: Jepa, copied: Path) -> None:
    done = jepa("train", "vicreg-tiny", "--name", "digits", "--resume")
    assert (done.code, "is of the recipe 'digits'" in done.err) == (2, True)


def test_a_run_without_a_checkpoint_begins_again_and_says_so(
    jepa: Jepa, copied: Path, finished: Path
) -> None:
    shutil.rmtree(copied / "checkpoints")
    done = jepa("train", "--resume")
    assert (done.code, "the run begins again at step 0" in done.err) == (0, True)
    weights, again = final_weights(finished), final_weights(copied)
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_sigterm_stops_cleanly_and_the_run_goes_on_bit_for_bit(jepa: Jepa, empty_folder: Path) -> None:
    flags = [*QUICK, "--steps", "150", "--name", "x"]
    child = subprocess.Popen(
        [sys.executable, "-m", "torchjepa", "train", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = empty_folder / "runs" / "x" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()) and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=120)
    assert (child.returncode, err) == (0, "")
    assert "Stopped by SIGTERM after step" in out
    assert "Go on with: jepa train --name x --runs runs --resume" in out
    (kept,) = list_checkpoints(empty_folder / "runs" / "x" / "checkpoints")
    assert 0 < kept.step < 150
    assert "has no encoder yet" in jepa("eval", "runs/x").err
    assert jepa("train", "--name", "x", "--resume").code == 0
    assert jepa("train", *flags[:-1], "undisturbed").code == 0
    one, other = final_weights(empty_folder / "runs/x"), final_weights(empty_folder / "runs/undisturbed")
    assert all(torch.equal(one[name], other[name]) for name in other)
    rows = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert rows == list(range(150))

"""What may be resumed, what is refused, and what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.engine import tiny
from tests.engine.test_loop import assert_equal, go, rows, steps
from torchjepa.engine import RunFolder, TrainResult


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run stopped in the middle: its last checkpoints are gone."""
    go(tmp_path / "run", keep_checkpoints=4)
    checkpoints = RunFolder(tmp_path / "run").checkpoints
    for step in (15, 20):
        for path in (checkpoints / f"step-{step}").iterdir():
            path.unlink()
        (checkpoints / f"step-{step}").rmdir()
    return tmp_path / "run"


def test_a_folder_with_checkpoints_is_refused_without_resume(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"already holds a run with checkpoints\. Continue it with --resume"):
        go(folder)


def test_resuming_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a run: it holds no run\.json"):
        go(tmp_path, resume=True)
    with pytest.raises(ValueError, match="no such folder"):
        go(tmp_path / "nowhere", resume=True)


def test_a_finished_run_says_so_and_gives_back_its_weights(tmp_path: Path) -> None:
    _, trained = go(tmp_path / "run")
    before = RunFolder(tmp_path / "run").metrics.read_text()
    again = tiny.TinyLearner()
    with pytest.warns(UserWarning, match="run is finished: all 20 steps are done"):
        result, _ = go(tmp_path / "run", again, resume=True)
    assert result == TrainResult(20, None, True)
    assert_equal(again, trained)
    assert RunFolder(tmp_path / "run").metrics.read_text() == before


def test_a_run_without_a_checkpoint_begins_again_and_says_so(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", {})
    RunFolder(tmp_path / "run").metrics.write_text('{"step": 0, "loss": 9.0}\n')
    with pytest.warns(UserWarning, match="holds no checkpoint yet; the run begins again at step 0"):
        _, resumed = go(tmp_path / "run", resume=True)
    _, whole = go(tmp_path / "whole")
    assert_equal(resumed, whole)
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 4, 9, 14, 19]
    assert rows(tmp_path / "run")[0]["loss"] != 9.0


def test_metrics_read_as_those_of_an_undisturbed_run(folder: Path) -> None:
    before = [(row["step"], row["loss"]) for row in rows(folder)]
    with RunFolder(folder).metrics.open("a") as file:
        file.write('{"step": 19, "lo')
    go(folder, resume=True)
    assert [(row["step"], row["loss"]) for row in rows(folder)] == before
    seconds = [row["seconds"] for row in rows(folder)]
    assert seconds == sorted(seconds)


def test_a_damaged_checkpoint_is_gone_around(folder: Path) -> None:
    with (RunFolder(folder).checkpoints / "step-10" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.warns(UserWarning, match=r"Skipped the damaged checkpoint .*step-10: the content"):
        _, resumed = go(folder, resume=True)
    _, whole = go(folder.parent / "whole")
    assert_equal(resumed, whole)
    assert steps(folder) == [20, 15]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed is 1, the run was started with 0"),
        ({"global_batch_size": 4}, "global_batch_size is 4, the run was started with 8"),
        ({"total_steps": 30}, "total_steps is 30, the run was started with 20"),
        ({"clip_grad": 1.0}, "clip_grad is 1.0, the run was started with None"),
        ({"precision": "bf16-mixed"}, "precision is 'bf16-mixed', the run was started with '32'"),
        ({"learning_rate": tiny.constant(0.1)}, "learning_rate is "),
        ({"weight_decay": tiny.constant(0.1)}, "weight_decay is "),
    ],
)
def test_other_settings_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="Cannot resume from .*step-10: .*" + message):
        go(folder, resume=True, **changes)


def test_another_momentum_is_refused(folder: Path) -> None:
    class Faster(tiny.TinyLearner):
        def scheduled(self, step: int) -> dict[str, float]:
            return {"momentum": 0.5}

    with pytest.raises(ValueError, match=r"scheduled is .*'momentum': 0.5"):
        go(folder, Faster(), resume=True)


def test_another_learner_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"the learner is another one \(.*was \[4, 6\].* and \d+ more\)"):
        go(folder, tiny.TinyLearner(embed_dim=5), resume=True)
    with pytest.raises(ValueError, match=r"the learner is another one \(norm\..* is gone; .* and 2 more\)"):
        go(folder, tiny.TinyLearner(batch_norm=False), resume=True)


def test_what_does_not_change_the_run_may_change(folder: Path) -> None:
    result, _ = go(folder, resume=True, log_every=1, checkpoint_every=3, keep_checkpoints=1)
    assert result.step == 20
    assert steps(folder) == [20]
    assert [row["step"] for row in rows(folder)] == [0, 4, 9, *range(10, 20)]


def test_run_json_is_left_alone(folder: Path) -> None:
    RunFolder(folder).run_json.write_text('{"recipe": "digits"}')
    go(folder, resume=True)
    assert json.loads(RunFolder(folder).run_json.read_text()) == {"recipe": "digits"}

"""`jepa doctor` on runs and files: verdict, exit code, JSON, and one line for what it cannot take."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import Jepa
from tests.cli.tiny import DIGITS, IJEPA, write_array

DRAWS = np.random.default_rng(0)
HEALTHY = DRAWS.normal(size=(512, 16)).astype(np.float32)
LINE = (DRAWS.normal(size=(512, 1)) * DRAWS.normal(size=(1, 16)) + 1e-3 * HEALTHY).astype(np.float32)
POINT = (5 + 1e-3 * HEALTHY).astype(np.float32)


def table(x: np.ndarray) -> str:
    return "".join(",".join(map(str, row)) + "\n" for row in x.tolist())


@pytest.mark.parametrize(
    ("features", "verdict", "code"),
    [
        (HEALTHY, "healthy", 0),
        (LINE, "dimensional collapse", 1),
        (POINT, "complete collapse", 1),
        (HEALTHY[:4], "too few samples to tell", 2),
        (np.where(HEALTHY > 2, np.nan, HEALTHY), "complete collapse", 1),
    ],
)
@pytest.mark.parametrize("ending", ["npy", "npz", "csv"])
def test_the_exit_code_says_the_verdict(
    jepa: Jepa, features: np.ndarray, verdict: str, code: int, ending: str
) -> None:
    path = Path(f"f.{ending}")
    if ending == "csv":
        path.write_text(table(features))
    else:
        np.save(path, features) if ending == "npy" else np.savez(path, features=features)
    done = jepa("doctor", path, "--json")
    assert (done.code, done.err) == (code, "")
    answer = json.loads(done.out)
    assert (answer["target"], answer["verdict"], answer["exit_code"]) == (str(path), verdict, code)
    done = jepa("doctor", path)
    assert (done.code, verdict.capitalize() in done.out, "expected" in done.out) == (code, True, True)


def test_tokens_that_are_all_alike_are_told(jepa: Jepa) -> None:
    tokens = np.repeat(HEALTHY[:, None], 9, axis=1)
    np.save("t.npy", tokens + 1e-3 * DRAWS.normal(size=tokens.shape).astype(np.float32))
    done = jepa("doctor", "t.npy", "--json")
    assert (done.code, json.loads(done.out)["verdict"]) == (1, "token collapse")
    assert json.loads(done.out)["notes"] == ["256 of 512 samples, evenly spaced."]


def test_what_to_change_stands_in_eighty_columns(jepa: Jepa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    np.save("f.npy", LINE)
    done = jepa("doctor", "f.npy", "--samples", 100)
    assert "What to change, the likeliest first:\n 1. " in done.out
    assert "Note: 100 of 512 samples, evenly spaced." in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert "\x1b" not in done.out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere.npy"], "There is no run folder and no file nowhere.npy."),
        (["f.npy", "--samples", "1"], "--samples must be at least 2, got 1."),
        (["f.npy", "--data", "photos"], "--data is for a run folder; f.npy is a file of features."),
        (["i.npy"], "is int64, expected floating point"),
        (["f.txt"], "must end in .npy, .npz, .parquet, .csv"),
        (["."], "is not a run: it holds no run.json"),
    ],
)
def test_errors_are_a_line_and_exit_code_2(jepa: Jepa, argv: list[str], message: str) -> None:
    np.save("f.npy", HEALTHY)
    np.save("i.npy", np.ones((40, 4), np.int64))
    Path("f.txt").write_text("1 2\n")
    done = jepa("doctor", *argv, "--json")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert message in done.err


def test_a_finished_run_is_examined_whole(jepa: Jepa, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    done = jepa("doctor", finished, "--json", "--device", "cpu")
    # Three steps are no run to judge by.
    assert (done.code, done.err) == (2, "")
    answer = json.loads(done.out)
    assert answer["verdict"] == "still warming up"
    assert {"encoder/effective_rank", "projector/effective_rank", "tokens/within_share"} <= set(
        answer["figures"]
    )
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    kept = json.loads((finished / "diagnosis.json").read_text())
    assert kept["figures"] == pytest.approx(answer["figures"], nan_ok=True)
    done = jepa("doctor", finished, "--samples", 20, "--data", write_array(Path("other.npz"), 50))
    assert done.code == 2
    assert "checkpoints/step-3, on" in done.out
    assert "Measured on 20 samples" in done.out


def test_what_is_left_of_a_run_is_examined(jepa: Jepa, finished: Path, empty_folder: Path) -> None:
    run = shutil.copytree(finished, empty_folder / "run")
    (run / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0}\n{"step": 400, "loss": 0.5}\n')
    shutil.rmtree(run / "checkpoints")
    done = jepa("doctor", run, "--json")
    notes = json.loads(done.out)["notes"]
    assert notes[0] == "No checkpoint is left: only the encoder was examined."
    assert "The last check in training, at step 2, said: too few samples to tell." in notes
    shutil.rmtree(run / "encoder")
    done = jepa("doctor", run)
    assert (done.code, "the check that the training made at step 2" in " ".join(done.out.split())) == (
        2,
        True,
    )
    (run / "doctor.jsonl").unlink()
    done = jepa("doctor", run)
    assert (done.code, "has no checkpoint, no encoder and no check yet" in done.err) == (2, True)


def train(jepa: Jepa, *argv: Any) -> Any:
    write_array(Path("data.npz"))
    return jepa("train", "digits", *DIGITS, "--data", "data.npz", "--no-judge", "--no-tensorboard", *argv)


COLLAPSING = ["--regularizer.mu-var", 0, "--regularizer.nu-cov", 0, "--lr", 0.03, "--warmup", 0]


def test_on_collapse_stop_keeps_the_run_and_exits_with_1(jepa: Jepa) -> None:
    flags = [*COLLAPSING, "--steps", 300, "--doctor-every", 20, "--batch-size", 32, "--log-every", 20]
    done = train(jepa, *flags, "--on-collapse", "stop")
    assert done.code == 1, done.out
    assert "collapse" in done.err
    assert "Stopped by the doctor (" in done.out
    assert "go on as it is with: jepa train --name digits --runs runs --resume --on-collapse warn" in done.out
    checks = [json.loads(line) for line in Path("runs/digits/doctor.jsonl").read_text().splitlines()]
    assert [check["exit_code"] for check in checks].index(1) == len(checks) - 1
    assert list(Path("runs/digits/checkpoints").iterdir())
    done = jepa("doctor", "runs/digits")
    assert (done.code, "checkpoints/step-" in done.out) == (1, True)


def test_the_verdict_ends_a_run_and_stands_in_its_page(jepa: Jepa) -> None:
    done = train(jepa, "--doctor-every", 0)
    assert (done.code, "The doctor's verdict is still warming up" in done.out) == (0, True)
    assert not Path("runs/digits/doctor.jsonl").exists()
    assert "Still warming up" in Path("runs/digits/report.html").read_text()


def test_a_masked_model_is_examined_with_its_predictor(jepa: Jepa) -> None:
    data = write_array(Path("data.npz"))
    assert jepa("train", "ijepa-tiny", *IJEPA, "--data", data, "--no-judge").code == 0
    figures = json.loads(Path("runs/ijepa-tiny/diagnosis.json").read_text())["figures"]
    assert "predictor/relative_error" in figures
    assert {"encoder/effective_rank", "target_tokens/within_share"} <= set(figures)


def test_doctor_every_is_a_count(jepa: Jepa) -> None:
    done = train(jepa, "--doctor-every", -1)
    assert (done.code, "--doctor-every must be a number of at least 0, got -1" in done.err) == (2, True)

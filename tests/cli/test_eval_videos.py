"""`jepa eval` on a run of videos: its own data, tables of files with several tasks, probes, several clips."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Jepa
from tests.data.movies import write_movie
from torchjepa.cli.main import main
from torchjepa.evaluation import read_scores, tasks_in

TINY = [
    *("--embed-dim", "16", "--depth", "1", "--num-heads", "2", "--predictor-dim", "8", "--steps", "2"),
    *("--batch-size", "4", "--probe-every", "0", "--judge-samples", "30", "--probes", "knn"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("videos")
    assert main(["train", "vjepa-digits", *TINY, "--runs", str(place / "runs")]) == 0
    return place / "runs" / "vjepa-digits"


@pytest.fixture
def tables(empty_folder: Path) -> tuple[Path, Path]:
    paths = empty_folder / "train.csv", empty_folder / "test.csv"
    for path, numbers in zip(paths, (range(12), range(12, 20)), strict=True):
        rows = ["path,label_first,label_length"]
        for i in numbers:
            write_movie(empty_folder / f"{i}.mp4", 16 + 24 * (i % 2), size=(32, 32))
            rows.append(f"{i}.mp4,{'ab'[i // 2 % 2]},{'short' if i % 2 == 0 else 'long'}")
        path.write_text("\n".join(rows) + "\n")
    return paths


def test_training_judges_with_the_probes_of_the_recipe(run: Path) -> None:
    scores = read_scores(run / "scores.json")
    assert {score.probe for score in scores} == {"knn"}
    assert set(tasks_in(scores)) == {"digit", "direction", "speed"}
    assert {score.features for score in scores} == {"encoder", "frame", "untrained", "pixels", "majority"}


def test_eval_gives_the_runs_own_scores(jepa: Jepa, run: Path) -> None:
    done = jepa("eval", run, "--out", "own.json", "--samples", 30, "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    assert Path("own.json").read_text() == (run / "scores.json").read_text()


def test_eval_on_tables_of_videos_with_every_probe_and_several_clips(
    jepa: Jepa, run: Path, tables: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchjepa.evaluation.attentive._LEAST_UPDATES", 1)
    flags = ("--data", tables[0], "--test-data", tables[1], "--out", "s.json")
    done = jepa("eval", run, *flags, "--probes", "knn", "attentive", "--clips", 2)
    assert (done.code, done.err) == (0, "")
    scores = json.loads(Path("s.json").read_text())
    assert {(s["task"], s["probe"]) for s in scores} == {
        (task, probe) for task in ("first", "length") for probe in ("knn", "attentive")
    }
    assert {(s["n_train"], s["n_test"]) for s in scores} == {(12, 8)}


def test_eval_says_what_is_wrong(jepa: Jepa, run: Path, finished: Path) -> None:
    done = jepa("eval", finished, "--clips", 2)
    assert (done.code, "num_clips must be at least 1, and 1 for images, got 2" in done.err) == (2, True)
    done = jepa("eval", run, "--probes", "lineal")
    assert (done.code, "lineal" in done.err) == (2, True)


def test_the_attentive_probe_judges_images_by_option(
    jepa: Jepa, run: Path, empty_folder: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchjepa.evaluation.attentive._LEAST_UPDATES", 1)
    done = jepa("eval", finished, "--probes", "attentive", "--out", "s.json")
    assert (done.code, done.err) == (0, "")
    assert [s.features for s in read_scores("s.json")] == ["encoder", "untrained", "majority"]

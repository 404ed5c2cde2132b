"""`jepa eval`, `jepa embed` and `jepa report` on a finished run."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

from tests.cli.conftest import Jepa
from tests.cli.tiny import write_array, write_folder
from torchjepa.cli.embed import _num_workers
from torchjepa.data import FolderSource
from torchjepa.hub import load_encoder
from torchjepa.nn import pool_by_name


def read_table(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    if path.suffix == ".npz":
        with np.load(path) as file:
            return file["ids"].tolist(), file["labels"].tolist(), file["features"]
    if path.suffix == ".parquet":
        table = parquet.read_table(path).to_pydict()
        return table["id"], table["label"], np.array(table["features"], np.float32)
    with path.open() as file:
        rows = list(csv.reader(file))[1:]
    return [row[0] for row in rows], [row[1] for row in rows], np.array([row[2:] for row in rows], np.float32)


@pytest.fixture
def photos(empty_folder: Path) -> Path:
    return write_folder(empty_folder / "photos", ("cat", "dog", ""), each=3)


@pytest.mark.parametrize("ending", ["npz", "parquet", "csv"])
def test_embed_writes_what_the_loaded_encoder_gives(
    jepa: Jepa, finished: Path, photos: Path, empty_folder: Path, ending: str
) -> None:
    out = empty_folder / "deep" / f"features.{ending}"
    done = jepa("embed", finished, "--data", photos, "--out", out, "--batch-size", 4)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"Wrote the features of 9 images to {out}\n"
    ids, labels, features = read_table(out)
    assert ids[:4] == ["00.jpg", "01.png", "02.jpg", "cat/00.jpg"]
    assert labels == [""] * 3 + ["cat"] * 3 + ["dog"] * 3
    loaded = load_encoder(finished / "encoder")
    source = FolderSource(photos)
    images = torch.stack([loaded.preprocessing(source.read(i)) for i in range(len(source))])
    with torch.no_grad():
        expected = pool_by_name(loaded.pool)(loaded.model(images))
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_embed_in_bfloat16_says_how_far_it_is_from_float32(jepa: Jepa, finished: Path, photos: Path) -> None:
    jepa("embed", finished, "--data", photos, "--out", "exact.npz")
    done = jepa("embed", finished, "--data", photos, "--out", "rounded.npz", "--precision", "bf16-mixed")
    exact, rounded = (read_table(Path(name))[2] for name in ("exact.npz", "rounded.npz"))
    apart = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 1e-4 < apart < 0.05
    said = float(done.out.split(" by ")[1].split()[0])
    assert said == pytest.approx(apart, rel=0.06)  # it is said with two digits
    assert "the first 9 images" in done.out


def test_embed_starts_workers_for_many_images_and_writes_the_same(
    jepa: Jepa, finished: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for processors, beside_cpu, beside_gpu in ((1, 0, 0), (2, 0, 1), (3, 2, 2), (64, 8, 8)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=processors: set(range(n)), raising=False)
        assert [_num_workers(1999, "cpu"), _num_workers(2000, "cpu")] == [0, beside_cpu]
        assert [_num_workers(1999, "cuda"), _num_workers(2000, "cuda")] == [0, beside_gpu]
    for number in ("0", "2"):
        jepa(
            "embed",
            finished,
            "--data",
            photos,
            "--out",
            f"{number}.npz",
            "--num-workers",
            number,
            "--batch-size",
            4,
        )
    alone, helped = (read_table(Path(f"{number}.npz")) for number in ("0", "2"))
    assert alone[:2] == helped[:2]
    assert np.array_equal(alone[2], helped[2])


def test_embed_lists_and_leaves_out_what_cannot_be_decoded(jepa: Jepa, finished: Path, photos: Path) -> None:
    (photos / "cat" / "bad.png").write_bytes(b"no image")
    done = jepa("embed", finished, "--data", photos, "--out", "f.npz")
    assert (done.code, "1 of the 10 samples cannot be decoded" in done.err) == (2, True)
    assert not Path("f.npz").exists()
    done = jepa("embed", finished, "--data", photos, "--out", "f.npz", "--max-data-errors", 0.1)
    assert "9 images to f.npz; 1 undecodable files are listed in f.data_errors.jsonl" in done.out
    (line,) = Path("f.data_errors.jsonl").read_text().splitlines()
    assert json.loads(line)["name"] == "cat/bad.png"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere"], "'nowhere' does not exist"),
        (["--data", "photos", "--out", "f.txt"], "must end in .npz, .parquet, .csv"),
        (["--data", "photos", "--device", "cda"], "There is no device 'cda' here"),
        (["--data", "photos", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--data", "photos", "--num-workers", "-1"], "num_workers must be at least 0, got -1"),
        (["--data", "photos", "--out", "photos/cat/00.jpg/f.npz"], "00.jpg"),
    ],
)
def test_embed_says_what_is_wrong(
    jepa: Jepa, finished: Path, photos: Path, flags: list[str], message: str
) -> None:
    done = jepa("embed", finished, *flags)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err


@pytest.mark.parametrize("command", [["eval"], ["embed", "--data", "photos"], ["report"]])
def test_there_must_be_a_run(jepa: Jepa, photos: Path, command: list[str]) -> None:
    done = jepa(*command, "runs/nowhere")
    assert (done.code, done.err) == (2, "jepa: There is no run at runs/nowhere: no such folder.\n")
    done = jepa(*command, photos)
    assert (done.code, done.err) == (2, f"jepa: {photos} is not a run: it holds no run.json.\n")


def test_a_damaged_run_is_explained(jepa: Jepa, finished: Path, photos: Path, empty_folder: Path) -> None:
    run = shutil.copytree(finished, empty_folder / "run")
    (run / "encoder" / "config.json").write_text("{")
    done = jepa("embed", run, "--data", photos)
    assert (done.code, "config.json is not JSON" in done.err) == (2, True)
    (run / "run.json").write_text("{")
    done = jepa("eval", run)
    assert (done.code, "is not the run.json of a run" in done.err) == (2, True)
    shutil.rmtree(run / "encoder")
    (run / "run.json").write_text((finished / "run.json").read_text())
    done = jepa("eval", run)
    assert (done.code, "Go on with it: jepa train --name run" in done.err) == (2, True)


def test_eval_on_the_runs_own_data_gives_the_runs_own_scores(
    jepa: Jepa, finished: Path, empty_folder: Path
) -> None:
    done = jepa("eval", finished, "--out", "own/scores.json", "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    assert "encoder - best baseline" in done.out
    assert Path("own/scores.json").read_text() == (finished / "scores.json").read_text()


def test_eval_on_other_data(jepa: Jepa, finished: Path, empty_folder: Path) -> None:
    run = shutil.copytree(finished, empty_folder / "run")
    train, test = write_array(empty_folder / "a.npz", 30), write_array(empty_folder / "b.npz", 12)
    done = jepa("eval", run, "--data", train, "--test-data", test)
    assert (done.code, f"The scores are in {run}/eval-a.json" in done.out) == (0, True)
    scores = json.loads((run / "eval-a.json").read_text())
    assert {(score["n_train"], score["n_test"]) for score in scores} == {(30, 12)}
    done = jepa("eval", run, "--data", train, "--holdout", 0.5, "--samples", 9)
    assert json.loads((run / "eval-a.json").read_text())[0]["n_train"] == 9


def test_eval_needs_labels_and_samples(jepa: Jepa, finished: Path, empty_folder: Path) -> None:
    write_folder(empty_folder / "plain", ("",), each=8)
    done = jepa("eval", finished, "--data", "plain")
    assert (done.code, "There is nothing to judge by" in done.err) == (2, True)
    done = jepa("eval", finished, "--samples", 1)
    assert (done.code, done.err) == (2, "jepa: --samples must be at least 2, got 1.\n")


def test_eval_says_which_files_it_left_out(jepa: Jepa, finished: Path, empty_folder: Path) -> None:
    write_folder(empty_folder / "many", each=20)
    (empty_folder / "many" / "cat" / "bad.png").write_bytes(b"no image")
    done = jepa("eval", finished, "--data", "many", "--out", "s.json", "--max-data-errors", 0.5)
    assert "the undecodable files are listed in s.data_errors.jsonl" in done.out
    assert "cat/bad.png" in Path("s.data_errors.jsonl").read_text()


def test_report_writes_the_page_again(jepa: Jepa, finished: Path, empty_folder: Path) -> None:
    run = shutil.copytree(finished, empty_folder / "run")
    before = (run / "report.html").read_text()
    (run / "report.html").unlink()
    done = jepa("report", run)
    assert (done.code, done.out) == (0, f"The report is in {run}/report.html\n")
    assert len((run / "report.html").read_text()) == pytest.approx(len(before), rel=0.05)

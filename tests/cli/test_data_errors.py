"""What can be wrong with data, as `jepa train` says it."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import Jepa
from tests.cli.tiny import DIGITS, write_array, write_folder

QUICK = [*DIGITS, "--no-judge", "--no-tensorboard"]


def test_a_few_undecodable_files_are_listed_and_passed_over(jepa: Jepa, empty_folder: Path) -> None:
    write_folder(empty_folder / "photos")
    for name in ("99.png", "98.jpg"):
        (empty_folder / "photos" / "cat" / name).write_bytes(b"no image")
    done = jepa("train", *DIGITS, "--data", "photos", "--max-data-errors", 0.5, "--steps", 6, "--name", "x")
    assert (done.code, done.err) == (0, "")
    lines = [json.loads(line) for line in Path("runs/x/data_errors.jsonl").read_text().splitlines()]
    listed = [(line["part"], line["name"]) for line in lines]
    assert len(listed) == len(set(listed))  # each once for each part it was met in
    assert {name for _, name in listed} == {"cat/98.jpg", "cat/99.png"}
    assert {part for part, _ in listed} <= {"train", "judged train", "judged test", "judged calibration"}
    assert "Undecodable files were left out; they are listed in runs/x/data_errors.jsonl" in done.out
    assert "2 files of the data could not be decoded" in Path("runs/x/report.html").read_text()


def test_too_many_undecodable_files_end_the_run_with_the_first_five(jepa: Jepa, empty_folder: Path) -> None:
    write_folder(empty_folder / "photos")
    for i in range(30):
        (empty_folder / "photos" / "cat" / f"bad{i}.png").write_bytes(b"no image")
    done = jepa("train", *QUICK, "--data", "photos", "--steps", 30, "--max-data-errors", 0.15)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert done.err.count("(UnidentifiedImageError") == 5
    assert "cannot be decoded, more than the 15.00% allowed" in done.err
    assert "runs/digits/data_errors.jsonl" in done.err
    assert len(Path("runs/digits/data_errors.jsonl").read_text().splitlines()) > 5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nowhere", "'nowhere' does not exist"),
        ("empty", "'empty' holds no"),
        ("words.txt", "is neither a folder of images nor"),
        ("broken.npz", "is not a readable NumPy file"),
        ("one", "holds one sample; at least two are needed"),
    ],
)
def test_data_that_cannot_be_used_are_one_line_and_no_run(
    jepa: Jepa, empty_folder: Path, data: str, message: str
) -> None:
    (empty_folder / "empty").mkdir()
    (empty_folder / "words.txt").write_text("words")
    (empty_folder / "broken.npz").write_bytes(b"PK")
    write_folder(empty_folder / "one", each=1, classes=("a",))
    done = jepa("train", *QUICK, "--data", data)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not (empty_folder / "runs").exists()


def test_no_read_permission_is_one_line(
    jepa: Jepa, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(empty_folder / "photos")
    scan = os.scandir

    # Refused here and not by chmod, which does not stop the superuser.
    def refuse(path: Any) -> Any:
        if str(path).startswith("photos"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    done = jepa("train", *QUICK, "--data", "photos")
    assert (done.code, done.err) == (2, "jepa: 'photos' cannot be read: permission denied.\n")


def test_test_data_without_data_are_refused(jepa: Jepa, empty_folder: Path) -> None:
    write_array(empty_folder / "data.npz")
    done = jepa("train", *QUICK, "--test-data", "data.npz")
    assert (done.code, "the embedded digits bring their own" in done.err) == (2, True)


def test_settings_that_do_not_fit_the_learner_leave_no_run_behind(jepa: Jepa, empty_folder: Path) -> None:
    data = write_array(empty_folder / "data.npz")
    done = jepa(
        "train", *QUICK, "--data", data, "--batch-size", 1
    )  # one row has no variance for a batch norm
    assert (done.code, "batch of at least 2" in done.err) == (2, True)
    assert not (empty_folder / "runs" / "digits").exists()
    assert jepa("train", *QUICK, "--data", data).code == 0


def test_a_learner_without_a_deployable_encoder_is_refused_before_it_is_trained(
    jepa: Jepa, empty_folder: Path
) -> None:
    write_array(empty_folder / "data.npz")
    (empty_folder / "mine.py").write_text(
        "import dataclasses, torch\n"
        "from torchjepa.recipes import JointEmbeddingRecipe\n"
        "@dataclasses.dataclass(frozen=True, kw_only=True)\n"
        "class Mine(JointEmbeddingRecipe):\n"
        "    def build_learner(self, num_channels, total_steps):\n"
        "        return torch.nn.Linear(2, 2)\n"
        "recipe = Mine(image_size=16)\n"
    )
    done = jepa("train", "mine.py", "--data", "data.npz")
    assert (done.code, "Linear has no property `deployable_encoder`" in done.err) == (2, True)
    assert not (empty_folder / "runs").exists()


def test_a_folder_that_is_no_run_is_left_alone(jepa: Jepa, empty_folder: Path) -> None:
    data = write_array(empty_folder / "data.npz")
    (empty_folder / "runs" / "digits").mkdir(parents=True)
    (empty_folder / "runs" / "digits" / "thesis.txt").write_text("mine")
    done = jepa("train", *QUICK, "--data", data)
    assert (done.code, "is not an empty folder" in done.err) == (2, True)
    assert (empty_folder / "runs" / "digits" / "thesis.txt").read_text() == "mine"


def test_a_float_array_out_of_range_is_explained(jepa: Jepa, empty_folder: Path) -> None:
    np.save(empty_folder / "data.npy", np.full((9, 16, 16), 2.5))
    done = jepa("train", *QUICK, "--data", "data.npy")
    assert (done.code, "must be in [0, 1]" in done.err) == (2, True)

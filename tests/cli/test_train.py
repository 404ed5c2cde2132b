"""Whole runs, in this process, on tiny data."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torchjepa
from tests.cli.conftest import Jepa
from tests.cli.tiny import DIGITS, IJEPA, final_weights, write_array, write_folder
from torchjepa.cli.main import main
from torchjepa.engine import list_checkpoints
from torchjepa.hub import load_encoder
from torchjepa.recipes.find import find_recipe
from torchjepa.recipes.serial import flatten, from_json


def run_json(path: Path) -> dict[str, Any]:
    return json.loads((path / "run.json").read_text(), parse_constant=pytest.fail)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_embedded_digits(jepa: Jepa) -> None:
    done = jepa("train", *DIGITS, "--image-size", 32)
    assert done.code == 0
    assert "20000 training, 4000 test canvases" in done.out
    assert "report is in runs/digits/report.html" in done.out
    scores = json.loads(Path("runs/digits/scores.json").read_text())
    assert len(scores) == 8
    assert all(score["n_train"] == 200 and score["n_test"] == 4000 for score in scores)


def test_everything_is_in_the_run_folder(finished: Path) -> None:
    for name in ("run.json", "metrics.jsonl", "scores.json", "report.html", "tensorboard", "checkpoints"):
        assert (finished / name).exists(), name
    assert [c.step for c in list_checkpoints(finished / "checkpoints")] == [3]
    assert [row["step"] for row in rows(finished)] == [0, 1, 2]
    assert {"loss", "loss/invariance", "lr", "health/std", "health/effective_rank"} <= rows(finished)[
        0
    ].keys()
    scores = json.loads((finished / "scores.json").read_text())
    assert {(s["probe"], s["features"]) for s in scores} == {
        (probe, features)
        for probe in ("knn", "linear")
        for features in ("encoder", "untrained", "pixels", "majority")
    }
    assert all(0 <= score["score"] <= 1 for score in scores)
    assert load_encoder(finished / "encoder").config["extra"]["recipe"] == "digits"


def test_run_json_holds_what_repeating_takes(finished: Path) -> None:
    held = run_json(finished)
    assert held["recipe"] == "digits"
    assert held["command"][:3] == ["jepa", "train", "digits"]
    assert held["overrides"]["widths"] == [4, 8]
    assert "regularizer.gamma" not in held["overrides"]
    assert held["settings"]["lr"] == find_recipe("digits").lr
    assert (held["seed"], held["total_steps"]) == (0, 3)
    assert held["versions"]["torch"] == torch.__version__
    assert held["versions"]["torchjepa"] == torchjepa.__version__
    assert held["data"]["train"]["kind"] == "array"
    assert held["data"]["train"]["subset_sha256"] != held["data"]["test"]["subset_sha256"]
    assert held["data"]["classes"] == ["class0", "class1", "class2"]
    assert held["device"]["type"] in ("cpu", "cuda", "mps")
    values = flatten(held["settings"]).values()
    assert all(math.isfinite(value) for value in values if isinstance(value, float))
    rebuilt = from_json(find_recipe("digits"), held["settings"])
    assert (rebuilt.steps, rebuilt.name) == (3, "digits")


@pytest.mark.parametrize("recipe", ["digits", "ijepa-tiny"])
def test_a_folder_of_images_with_labels(jepa: Jepa, empty_folder: Path, recipe: str) -> None:
    write_folder(empty_folder / "photos", each=12)
    done = jepa("train", recipe, *(DIGITS if recipe == "digits" else IJEPA), "--data", "photos")
    assert (done.code, done.err) == (0, "")
    run = empty_folder / "runs" / recipe
    assert run_json(run)["data"]["classes"] == ["cat", "dog"]
    assert len(json.loads((run / "scores.json").read_text())) == 8
    assert load_encoder(run / "encoder").preprocessing.num_channels == 3
    assert ("Masks" in (run / "report.html").read_text()) == (recipe == "ijepa-tiny")


def test_piped_output_is_plain_lines(jepa: Jepa, empty_folder: Path) -> None:
    done = jepa("train", *DIGITS, "--data", write_array(empty_folder / "data.npz"))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.out + done.err)
    lines = [line for line in done.out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    assert all(word in lines[-1] for word in ("samples/s", "loss", "variance", "lr", "std", "effective rank"))


@pytest.mark.parametrize(
    ("classes", "words"),
    [(("",), "The data have no labels"), (("only",), "fewer than two classes")],
)
def test_data_without_classes_to_tell_apart_give_a_report_and_no_scores(
    jepa: Jepa, empty_folder: Path, classes: tuple[str, ...], words: str
) -> None:
    write_folder(empty_folder / "photos", classes, each=16)
    done = jepa("train", *DIGITS, "--data", "photos", "--probe-every", 1)
    assert done.code == 0
    assert words in done.out
    run = empty_folder / "runs" / "digits"
    assert not (run / "scores.json").exists()
    assert words in (run / "report.html").read_text()
    assert "probe/knn" not in rows(run)[-1]
    assert "nothing is left to do" in jepa("train", "--resume").out


def test_no_judge_writes_the_report_without_scores(jepa: Jepa, empty_folder: Path) -> None:
    done = jepa("train", *DIGITS, "--data", write_array(empty_folder / "data.npz"), "--no-judge")
    assert "not judged (--no-judge)" in done.out
    run = empty_folder / "runs" / "digits"
    assert (run / "report.html").exists()
    assert not (run / "scores.json").exists()


def test_the_probe_looks_in_every_so_many_steps(jepa: Jepa, empty_folder: Path) -> None:
    data = write_array(empty_folder / "data.npz")
    jepa("train", *DIGITS, "--data", data, "--probe-every", 2, "--steps", 5, "--probe-samples", 30)
    steps = [row["step"] for row in rows(empty_folder / "runs" / "digits") if "probe/knn" in row]
    assert steps == [1, 3, 4]


def test_a_run_repeats_from_its_run_json_bit_for_bit(finished: Path, jepa: Jepa, empty_folder: Path) -> None:
    path = finished / "run.json"
    assert jepa("train", "--from", path, "--name", "y", "--runs", "runs").code == 0
    again = empty_folder / "runs" / "y"
    assert same(final_weights(again), final_weights(finished))
    assert (again / "scores.json").read_text() == (finished / "scores.json").read_text()
    assert [row["loss"] for row in rows(again)] == [row["loss"] for row in rows(finished)]


@pytest.mark.parametrize(
    ("change", "is_same"),
    [(["--num-workers", "2"], True), (["--seed", "1"], False), (["--probe-every", "1"], True)],
)
def test_what_changes_a_run_and_what_does_not(
    finished: Path, jepa: Jepa, empty_folder: Path, change: list[str], is_same: bool
) -> None:
    repeat = ["--from", finished / "run.json", "--name", "y", "--runs", "runs", "--no-judge"]
    assert jepa("train", *repeat, *change).code == 0
    again = empty_folder / "runs" / "y"
    assert same(final_weights(again), final_weights(finished)) == is_same
    assert ([row["loss"] for row in rows(again)] == [row["loss"] for row in rows(finished)]) == is_same


@pytest.mark.parametrize("name", ["digits", "ijepa-tiny"])
def test_the_seed_keys_the_initial_weights_of_every_part(name: str) -> None:
    first, second, again = (
        from_json(find_recipe(name), {"seed": seed}).seeded_learner(3, 1).state_dict() for seed in (0, 1, 0)
    )
    drawn = [key for key, value in first.items() if value.ndim > 1 and value.unique().numel() > 2]
    # Fixed sin-cos positions are the only matrices that no seed draws.
    assert [key for key in drawn if torch.equal(first[key], second[key]) and "positions" not in key] == []
    assert same(first, again)


@pytest.mark.parametrize("flags", [["--accumulate", "2"], ["--precision", "bf16-mixed"], ["--epochs", "0.5"]])
def test_other_ways_to_train(jepa: Jepa, empty_folder: Path, flags: list[str]) -> None:
    write_array(empty_folder / "data.npz", num=90)
    assert jepa("train", *DIGITS, "--data", "data.npz", *flags).code == 0
    run = empty_folder / "runs" / "digits"
    assert all(math.isfinite(row["loss"]) for row in rows(run))
    if flags[0] == "--epochs":
        samples = run_json(run)["data"]["train"]["subset_size"]
        assert run_json(run)["total_steps"] == round(samples / 16)


def test_a_recipe_of_the_users_own(jepa: Jepa, empty_folder: Path) -> None:
    write_array(empty_folder / "data.npz")
    (empty_folder / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "import torch\n"
        "from torchjepa.models import JointEmbedding\n"
        "from torchjepa.nn import ConvEncoder, MeanPool, Projector\n"
        "from torchjepa.recipes import JointEmbeddingRecipe\n"
        "@dataclass(frozen=True)\n"
        "class Terms:\n"
        "    spread: torch.Tensor\n"
        "    def total(self):\n"
        "        return self.spread\n"
        "class Spread:\n"
        "    def compute(self, *views):\n"
        "        return Terms(sum((1 - view.std(0)).square().mean() for view in views))\n"
        "    def loss(self, *views):\n"
        "        return self.compute(*views).total()\n"
        "class Encoder(ConvEncoder):\n"
        "    pass\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(JointEmbeddingRecipe):\n"
        "    def build_encoder(self, num_channels):\n"
        "        return Encoder(in_channels=num_channels, widths=(4, 8), depths=(1, 1), strides=(2, 2))\n"
        "class Learner(JointEmbedding):\n"
        "    pass\n"
        "recipe = Mine(image_size=16, projector_dim=8, regularizer=Spread(), steps=2, batch_size=8)\n"
    )
    done = jepa("train", "mine.py:recipe", "--data", "data.npz", "--name", "x")
    assert (done.code, done.err) == (0, "")
    held = run_json(empty_folder / "runs" / "x")
    assert held["settings"]["regularizer"] == {"class": "Spread"}
    assert jepa("train", "--from", "runs/x/run.json", "--name", "y").code == 0
    assert same(final_weights(empty_folder / "runs/y"), final_weights(empty_folder / "runs/x"))
    # Its encoder is none of torchjepa.nn's: the recipe builds it for `embed` and `eval`.
    assert jepa("embed", "runs/x", "--data", "data.npz", "--out", "f.npz").code == 0
    assert np.load("f.npz")["features"].shape == (60, 8)


def test_a_loss_that_is_not_finite_is_one_line_and_exit_code_1(jepa: Jepa, empty_folder: Path) -> None:
    write_array(empty_folder / "data.npz")
    flags = ["--steps", 40, "--lr", "1e30", "--final-lr", 0, "--warmup", 0.5, "--checkpoint-every", 1]
    done = jepa("train", *DIGITS, "--data", "data.npz", *flags)
    assert done.code == 1
    assert re.match(
        r"jepa: Training stopped at step \d+: .* The last good checkpoint is runs/digits/check", done.err
    )
    assert done.err.count("\n") == 1
    assert list_checkpoints(empty_folder / "runs/digits/checkpoints")
    assert not (empty_folder / "runs/digits/encoder").exists()
    assert "has no encoder yet" in jepa("embed", "runs/digits", "--data", "data.npz").err


def test_python_m_torchjepa_is_jepa(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import runpy

    monkeypatch.setattr(sys, "argv", ["torchjepa", "--version"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("torchjepa", run_name="__main__")
    assert (stopped.value.code, capsys.readouterr().out) == (0, f"torchjepa {torchjepa.__version__}\n")
    assert main(["--version"]) == 0

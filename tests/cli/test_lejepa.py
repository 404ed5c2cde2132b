"""Runs of the LeJEPA recipe: many views of two sizes, and a regularizer that counts its calls."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import Jepa
from tests.cli.tiny import final_weights, write_array

QUICK = [
    *("--widths", "4", "8", "--depths", "1", "1", "--strides", "2", "2", "--projector-dim", "8"),
    *("--projector-out", "4", "--num-local", "2", "--local-size", "8", "--image-size", "16"),
    *("--steps", "4", "--batch-size", "8", "--log-every", "1", "--probe-every", "0", "--data", "data.npz"),
]
COUNT = "regularizer.regularizer._extra_state"


@pytest.fixture(autouse=True)
def data(empty_folder: Path) -> Path:
    return write_array(empty_folder / "data.npz")


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_with_views_of_two_sizes_ends_with_its_report(jepa: Jepa, empty_folder: Path) -> None:
    done = jepa("train", "lejepa-digits", *QUICK, "--judge-samples", "200")
    assert (done.code, done.err) == (0, "")
    run = empty_folder / "runs" / "lejepa-digits"
    assert {"loss/invariance", "loss/sigreg"} <= set(rows(run)[-1])
    assert "Augmented views" in (run / "report.html").read_text()
    assert (run / "scores.json").is_file()
    assert final_weights(run)[COUNT].item() == 4


def test_it_goes_on_bit_for_bit_and_repeats_from_its_run_json(jepa: Jepa, empty_folder: Path) -> None:
    runs, bare = empty_folder / "runs", ["--no-judge", "--no-tensorboard", "--checkpoint-every", "2"]
    assert jepa("train", "lejepa-digits", *QUICK, *bare).code == 0
    whole = final_weights(runs / "lejepa-digits")
    shutil.copytree(runs / "lejepa-digits", runs / "killed")
    shutil.rmtree(runs / "killed" / "checkpoints" / "step-4")
    assert jepa("train", "--name", "killed", "--resume").code == 0
    again = runs / "lejepa-digits" / "run.json"
    assert jepa("train", "--from", str(again), "--name", "again").code == 0
    for name in ("killed", "again"):
        other = final_weights(runs / name)
        assert other.keys() == whole.keys()
        assert all(torch.equal(value, other[key]) for key, value in whole.items())


def test_micro_batches_train_what_the_whole_batch_trains(jepa: Jepa, empty_folder: Path) -> None:
    bare = ["--no-judge", "--no-tensorboard", "--precision", "32"]
    # No batch norms in the encoder; those of the projector see the joined batch.
    vit = ["--encoder", "vit", "--patch-size", "4", "--embed-dim", "16", "--depth", "1", "--num-heads", "2"]
    for name, more in (("whole", []), ("split", ["--accumulate", "2"])):
        assert jepa("train", "lejepa-digits", *QUICK, *bare, *vit, "--name", name, *more).code == 0
    whole, split = (rows(empty_folder / "runs" / name) for name in ("whole", "split"))
    for one, other in zip(whole, split, strict=True):
        for term in ("loss/invariance", "loss/sigreg"):
            assert one[term] == pytest.approx(other[term], rel=1e-3)

"""Several processes on one machine: torchrun, and `--devices` without it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Jepa
from tests.cli.tiny import DIGITS, IJEPA, final_weights, write_array
from torchjepa.engine import list_checkpoints

SCRIPTS = Path(sys.executable).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
# In float32: bfloat16 rounds the halves of a batch otherwise than the whole.
TWENTY = [
    *("--steps", "20", "--batch-size", "16", "--accelerator", "cpu", "--judge-samples", "50"),
    *("--precision", "32"),
    # Of two nearly equal tokens, rounding decides which is the maximum, and Adam's first steps make a difference of
    # one learning rate of any change.
    *("--pool", "mean"),
]


def command(way: str) -> list[str]:
    if way == "torchrun":
        return [*TORCHRUN, "-m", "torchjepa"]
    if way == "module":
        return [sys.executable, "-m", "torchjepa"]
    script = shutil.which("jepa", path=str(SCRIPTS))
    if script is None:
        pytest.skip("the jepa script is not installed beside this interpreter")
    return [script]


def launch(words: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR"):
        environment.pop(name, None)
    return subprocess.run(words, capture_output=True, text=True, timeout=280, env=environment)


def check_agreement(one: Path, several: Path) -> None:
    alone, together = final_weights(one), final_weights(several)
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        assert torch.allclose(value.float(), together[name].float(), rtol=0, atol=1e-4), name


def check_whole(done: subprocess.CompletedProcess[str], run: Path) -> None:
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = [
        line for line in done.stdout.splitlines() if line.startswith(("step", "The ", "JointEmb", "IJEPA"))
    ]
    assert len(lines) == len(set(lines))
    assert sum(line.startswith("step ") for line in lines) == 20
    assert lines[-1] == f"The report is in {run}/report.html"
    assert list_checkpoints(run / "checkpoints")[0].step == 20
    for name in ("encoder/model.safetensors", "scores.json", "metrics.jsonl"):
        assert (run / name).is_file(), name
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 20


def test_torchrun_trains_what_one_process_trains(jepa: Jepa, empty_folder: Path) -> None:
    write_array(empty_folder / "data.npz")
    flags = ["train", "digits", *DIGITS, *TWENTY, "--data", "data.npz"]
    done = launch([*command("torchrun"), *flags, "--name", "two"])
    check_whole(done, Path("runs/two"))
    assert jepa(*flags, "--name", "one").code == 0
    check_agreement(empty_folder / "runs" / "one", empty_folder / "runs" / "two")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "recipe"),
    [
        ("torchrun", "ijepa-tiny"),
        ("module", "digits"),
        ("script", "ijepa-tiny"),
        ("torchrun", "lejepa-digits"),
    ],
)
def test_other_recipes_and_ways_to_start(jepa: Jepa, empty_folder: Path, way: str, recipe: str) -> None:
    write_array(empty_folder / "data.npz")
    small = IJEPA if recipe == "ijepa-tiny" else DIGITS
    flags = ["train", recipe, *small, *TWENTY, "--data", "data.npz"]
    devices = [] if way == "torchrun" else ["--devices", "2"]
    done = launch([*command(way), *flags, *devices, "--name", "two"])
    check_whole(done, Path("runs/two"))
    assert jepa(*flags, "--name", "one").code == 0
    check_agreement(empty_folder / "runs" / "one", empty_folder / "runs" / "two")


@pytest.mark.slow
def test_an_error_ends_all_processes_with_one_line_from_the_first(empty_folder: Path) -> None:
    write_array(empty_folder / "data.npz")
    flags = ["train", "digits", *DIGITS, "--data", "data.npz", "--batch-size", "9", "--accelerator", "cpu"]
    done = launch([*command("torchrun"), *flags])
    assert done.returncode != 0
    assert "jepa: The global batch size 9 does not split evenly over 2 process(es)" in done.stderr
    assert not (empty_folder / "runs" / "digits").exists()

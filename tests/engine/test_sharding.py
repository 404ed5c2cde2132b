"""FSDP2 gives the run of one process, and every process holds its share only."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.engine.processes import ROOT, Server
from tests.engine.test_kill import wait_for_rows
from tests.engine.test_ranks import PLAIN, results, run_ranks, start_ranks, weights
from torchjepa.engine import RunFolder, find_fault, list_checkpoints
from torchjepa.engine.sharding import find_units, local, shard_like, whole

JOBS: dict[str, dict[str, Any]] = {
    "plain": {"kind": "plain", "dtype": "float32"},
    "several": {"kind": "several"},
    "plain-accumulated": {"kind": "plain", "settings": {"accumulate": 2, "clip_grad": 0.05}},
    "predicted-accumulated": {"kind": "predicted", "settings": {"accumulate": 2}},
    "views-accumulated": {"kind": "views", "settings": {"accumulate": 2}},
}
MORE_JOBS: dict[str, dict[str, Any]] = {
    "predicted": {"kind": "predicted"},
    "shared": {"kind": "shared"},
    "views": {"kind": "views"},
    "sigreg-recomputed": {"kind": "sigreg", "settings": {"recompute_activations": True}},
}
BFLOAT16 = {"kind": "plain", "dtype": "float32", "settings": {"precision": "bf16-mixed"}}


def job(each: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**each, "settings": {"total_steps": 10, "log_every": 1, **each.get("settings", {}), **changes}}


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in RunFolder(folder).metrics.read_text().splitlines()]


def assert_same_run(ours: Path, expected: Path) -> None:
    a, b = rows(ours), rows(expected)
    assert [row["step"] for row in a] == [row["step"] for row in b]
    for name in ("loss", *(["grad_norm"] if "grad_norm" in b[0] else [])):
        # Rows are rounded to float32, whatever was computed in.
        assert [row[name] for row in a] == pytest.approx([row[name] for row in b], rel=1e-6)
    for name, tensor in weights(expected).items():
        # What no loss depends on (the bias of keys, that before a batch norm) wanders: AdamW makes steps of its
        # gradient's rounding errors, large ones in float32.
        if tensor.dtype == torch.float64:
            torch.testing.assert_close(weights(ours)[name], tensor, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def alone(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    server.run("run_joined_many", folder=str(folder), jobs={name: job(JOBS[name]) for name in JOBS})
    return folder


def assert_same_on_two_ranks(server: Server, folder: Path, alone: Path, jobs: Any, strategy: str) -> None:
    many = {name: job(each, strategy=strategy) for name, each in jobs.items()}
    run_ranks(server, "run_joined_many", folder, jobs=many)
    for name in jobs:
        assert_same_run(folder / name, alone / name)


def test_fsdp_on_two_ranks_agrees_with_one_process(server: Server, alone: Path, tmp_path: Path) -> None:
    assert_same_on_two_ranks(server, tmp_path, alone, JOBS, "fsdp")


@pytest.mark.slow
def test_ddp_and_fsdp_agree_with_one_process_on_every_learner(server: Server, tmp_path: Path) -> None:
    jobs = JOBS | MORE_JOBS
    alone = tmp_path / "alone"
    server.run("run_joined_many", folder=str(alone), jobs={name: job(jobs[name]) for name in jobs})
    assert_same_on_two_ranks(server, tmp_path / "ddp", alone, jobs, "ddp")
    assert_same_on_two_ranks(server, tmp_path / "fsdp", alone, MORE_JOBS, "fsdp")


# The learner's widths (8, 12, 24, 32) split unevenly over three, its mask token not at all.
@pytest.mark.parametrize(
    ("strategy", "world_size"),
    [("fsdp", 3), ("fsdp", 2), pytest.param("ddp", 2, marks=pytest.mark.slow), ("fsdp", 1)],
)
def test_a_checkpoint_is_the_same_bit_for_bit_whoever_reads_and_writes_it(
    server: Server, alone: Path, tmp_path: Path, strategy: str, world_size: int
) -> None:
    source, folder = alone / "predicted-accumulated", tmp_path / "again"
    settings = {"strategy": strategy}
    run_ranks(
        server,
        "rewrite",
        folder,
        world_size=world_size,
        source=str(source),
        kind="predicted",
        settings=settings,
    )
    (ours,) = list_checkpoints(RunFolder(folder).checkpoints)
    expected = list_checkpoints(RunFolder(source).checkpoints)[0]
    assert find_fault(ours) is None
    assert (ours.path / "model.safetensors").read_bytes() == (
        expected.path / "model.safetensors"
    ).read_bytes()
    assert_equal_trees(ours.training(), expected.training())


def assert_equal_trees(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal_trees(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for ours, theirs in zip(a, b):
            assert_equal_trees(ours, theirs)
    else:
        assert a == b


def test_a_run_goes_on_with_another_number_of_processes_and_another_strategy(
    server: Server, alone: Path, tmp_path: Path
) -> None:
    folder, name = tmp_path / "run", "predicted-accumulated"
    stages = [("fsdp", 2, 2), ("ddp", 2, 4), ("fsdp", 1, 7), ("fsdp", 2, None)]
    for stage, (strategy, world_size, stop_at) in enumerate(stages):
        arguments = {**job(JOBS[name], strategy=strategy), "stop_at": stop_at, "resume": stage > 0}
        run_ranks(server, "run_joined", folder, world_size=world_size, **arguments)
    assert_same_run(folder, alone / name)


@pytest.mark.slow
def test_three_processes_are_killed_and_one_goes_on(server: Server, tmp_path: Path) -> None:
    settings = {"clip_grad": 0.5, "global_batch_size": 12}
    expected, folder = tmp_path / "expected", tmp_path / "run"
    server.run("run", folder=str(expected), learner=PLAIN, settings=settings)
    sharded = {**settings, "strategy": "fsdp"}
    pids = start_ranks(server, "run", folder, world_size=3, hold_at=12, learner=PLAIN, settings=sharded)
    wait_for_rows(folder, 3)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        assert server.wait(pid) == -signal.SIGKILL
    server.run("run", folder=str(folder), resume=True, learner=PLAIN, settings=sharded)
    assert_same_run(folder, expected)


def test_hooks_see_the_weights_when_they_say_so(server: Server, tmp_path: Path) -> None:
    arguments = job(JOBS["plain"], log_every=100)
    server.run("probe", folder=str(tmp_path / "one"), **arguments)
    run_ranks(server, "probe", tmp_path / "two", **job(JOBS["plain"], log_every=100, strategy="fsdp"))
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row["step"] for row in one] == [row["step"] for row in two] == [0, 6, 9]
    for a, b in zip(one[1:], two[1:]):
        assert b["probe/mean"] == pytest.approx(a["probe/mean"], abs=1e-6)
    # The step before the probe's row, whose figure the row takes over, had no weights to show.
    assert [row["without_notice"] for row in one] == [0, 0, 0]
    assert [row["without_notice"] for row in two] == [1, 0, 0]


def test_a_bad_loss_on_one_rank_stops_all(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = {"learner": {**PLAIN, "bad_at": 7, "bad_rank": 1}, "settings": {"strategy": "fsdp"}}
    run_ranks(server, "diverge", folder, **arguments)
    assert [result["step"] for result in results(folder)] == [7, 7]
    assert [checkpoint.step for checkpoint in list_checkpoints(RunFolder(folder).checkpoints)] == [5]


def watched(server: Server, folder: Path, **arguments: Any) -> list[dict[str, Any]]:
    run_ranks(server, "watch_update", folder, kind="plain", **arguments)
    return [json.loads(Path(f"{folder}-{rank}.json").read_text()) for rank in range(2)]


def test_an_update_under_fsdp_gathers_twice_and_scatters_once(server: Server, tmp_path: Path) -> None:
    first, second = watched(server, tmp_path / "seen", settings={"strategy": "fsdp"})
    assert first["calls"] == second["calls"]
    sizes = {name: 2 * 4 * math.prod(part) for name, (_, part) in first["layout"].items()}  # with padding

    def size(prefix: str, part: str = "") -> int:
        return sum(each for name, each in sizes.items() if name.startswith(prefix) and part in name)

    trained = size("encoder.") + size("predictor.")
    blocks = size("encoder.", ".blocks.") + size("predictor.", ".blocks.")
    once = trained + size("target_encoder.")
    # torch prefetches in the backward pass what came before in the forward one: for nothing, the target's last block.
    assert first["bytes"]["all-gather"] - once - blocks in (0, size("target_encoder.", ".blocks."))
    assert first["bytes"]["reduce-scatter"] == trained
    assert first["calls"]["reduce-scatter"] == 3
    assert first["bytes"].keys() == {"all-gather", "reduce-scatter"}


def test_the_target_is_cut_like_its_twin_and_moves_without_a_word(server: Server, tmp_path: Path) -> None:
    for seen in watched(server, tmp_path / "seen", settings={"strategy": "fsdp"}):
        assert seen["ema"] == {}
        for name, (shape, part) in seen["layout"].items():
            if name.startswith("target_encoder."):
                assert [shape, part] == seen["layout"][name.removeprefix("target_")]
                assert part == [shape[0] // 2, *shape[1:]]


def test_an_update_under_ddp_reduces_every_gradient_once(server: Server, tmp_path: Path) -> None:
    for seen in watched(server, tmp_path / "seen", settings={"strategy": "ddp"}):
        trained = sum(
            4 * math.prod(shape)
            for name, (shape, _) in seen["layout"].items()
            if not name.startswith("target_encoder.")
        )
        assert seen["bytes"] == {"all-reduce": trained}
        assert seen["ema"] == {}


def test_a_learner_without_lists_is_told_what_it_misses(server: Server, tmp_path: Path) -> None:
    run_ranks(server, "run", tmp_path / "run", learner=PLAIN, settings={"strategy": "fsdp", "total_steps": 1})
    assert "TinyLearner holds no nn.ModuleList, so strategy fsdp gathers all of it at once" in server.output()


def test_inner_entries_of_lists_come_first() -> None:
    inner = [nn.Linear(2, 2), nn.Linear(2, 2)]
    outer = nn.Sequential(nn.ModuleList(inner))
    module = nn.ModuleDict({"stages": nn.ModuleList([outer, nn.ReLU()]), "head": nn.Linear(2, 2)})
    assert find_units(module) == [*reversed(inner), outer]


def test_a_tensor_that_is_whole_stays_as_it_is() -> None:
    tensor = torch.arange(3.0)
    assert whole(tensor) is tensor
    assert local(tensor) is tensor
    assert shard_like(tensor, torch.zeros(3)) is tensor


@pytest.mark.slow
def test_bfloat16_gives_the_losses_of_one_process(server: Server, tmp_path: Path) -> None:
    server.run("run_joined", folder=str(tmp_path / "one"), **job(BFLOAT16))
    run_ranks(server, "run_joined", tmp_path / "two", **job(BFLOAT16, strategy="fsdp"))
    ours, expected = ([row["loss"] for row in rows(tmp_path / name)] for name in ("two", "one"))
    assert ours == pytest.approx(expected, rel=5e-3)


@pytest.mark.slow
def test_the_command_runs_under_torchrun_and_goes_on_alone(tmp_path: Path) -> None:
    options = (
        "--accelerator cpu --precision 32 --steps 6 --batch-size 16 --log-every 1 --checkpoint-every 3",
        "--probe-every 3 --probe-samples 100 --doctor-every 0 --no-judge --judge-samples 100",
    )
    recipe = f"train ijepa-digits {' '.join(options)} --runs {tmp_path}".split()
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command(*torchrun, "-m", "torchjepa", *recipe, "--name", "two", "--strategy", "fsdp")
    two = tmp_path / "two"
    expected = rows(two)
    shutil.rmtree(two / "encoder")
    shutil.rmtree(two / "checkpoints" / "step-6")
    command("-m", "torchjepa", "train", "--name", "two", "--runs", str(tmp_path), "--resume")
    assert (two / "encoder" / "model.safetensors").is_file()
    assert [row["step"] for row in rows(two)] == list(range(6))
    assert [row["loss"] for row in rows(two)] == pytest.approx([row["loss"] for row in expected], rel=1e-6)
    assert [row.get("probe/knn") for row in rows(two)] == [row.get("probe/knn") for row in expected]


def command(*words: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, check=True, timeout=120)

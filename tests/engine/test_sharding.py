"""FSDP2 gives the run of one process, and every process holds its share only."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.processes import Server
from tests.engine.test_kill import wait_for_rows
from tests.engine.test_ranks import PLAIN, results, run_ranks, start_ranks, weights
from torchjepa.engine import RunFolder, find_fault, list_checkpoints

JOBS: dict[str, dict[str, Any]] = {
    "plain": {"kind": "plain", "dtype": "float32"},
    "plain-accumulated": {"kind": "plain", "settings": {"accumulate": 2, "clip_grad": 0.05}},
    "predicted": {"kind": "predicted"},
    "predicted-accumulated": {"kind": "predicted", "settings": {"accumulate": 2}},
    "shared": {"kind": "shared"},
    "views": {"kind": "views"},
    "views-accumulated": {"kind": "views", "settings": {"accumulate": 2}},
    "sigreg-recomputed": {"kind": "sigreg", "settings": {"recompute_activations": True}},
}


def job(name: str, **changes: Any) -> dict[str, Any]:
    settings = {"total_steps": 10, "log_every": 1, **JOBS[name].get("settings", {}), **changes}
    return {**JOBS[name], "settings": settings}


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
    server.run("run_joined_many", folder=str(folder), jobs={name: job(name) for name in JOBS})
    return folder


@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("ddp", marks=pytest.mark.slow)])
def test_two_ranks_agree_with_one_process(server: Server, alone: Path, tmp_path: Path, strategy: str) -> None:
    jobs = {name: job(name, strategy=strategy) for name in JOBS}
    run_ranks(server, "run_joined_many", tmp_path, jobs=jobs)
    for name in JOBS:
        assert_same_run(tmp_path / name, alone / name)


# The learner's widths (8, 12, 24, 32) split unevenly over three, its mask token not at all.
@pytest.mark.parametrize(
    ("strategy", "world_size"),
    [("fsdp", 3), ("fsdp", 2), pytest.param("ddp", 2, marks=pytest.mark.slow), ("fsdp", 1)],
)
def test_a_checkpoint_is_the_same_bit_for_bit_whoever_reads_and_writes_it(
    server: Server, alone: Path, tmp_path: Path, strategy: str, world_size: int
) -> None:
    source, folder = alone / "predicted", tmp_path / "again"
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
        arguments = {**job(name, strategy=strategy), "stop_at": stop_at, "resume": stage > 0}
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
    arguments = job("plain", log_every=100)
    server.run("probe", folder=str(tmp_path / "one"), **arguments)
    run_ranks(server, "probe", tmp_path / "two", **job("plain", log_every=100, strategy="fsdp"))
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


def test_shards_and_what_is_said_about_them(server: Server, tmp_path: Path) -> None:
    run_ranks(server, "watch_update", tmp_path / "seen", kind="plain", settings={"strategy": "fsdp"})
    first, second = (json.loads(Path(f"{tmp_path}/seen-{rank}.json").read_text()) for rank in range(2))
    print(first["calls"], first["bytes"])
    assert first["ema"] == second["ema"] == {}
    for name, (shape, part) in first["layout"].items():
        assert part[0] == -(-shape[0] // 2)
        if name.startswith("target_encoder."):
            assert [shape, part] == first["layout"][name.replace("target_encoder.", "encoder.")]

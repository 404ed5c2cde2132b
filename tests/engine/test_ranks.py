"""Several processes give the run of one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.processes import ROOT, Server
from tests.engine.test_kill import wait_for_rows
from torchjepa.engine import RunFolder, list_checkpoints

# Neither: batch statistics and dropout of a rank are its own.
PLAIN = {"batch_norm": False, "dropout": 0.0}


def ranks_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    return {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_ranks(
    server: Server, program: str, folder: Path, *, world_size: int = 2, **arguments: Any
) -> list[int]:
    port = free_port()
    return [
        server.start(
            program, environment=ranks_environment(rank, world_size, port), folder=str(folder), **arguments
        )
        for rank in range(world_size)
    ]


def run_ranks(server: Server, program: str, folder: Path, **arguments: Any) -> None:
    """Start the ranks, wait for all and insist on success."""
    codes = [server.wait(pid) for pid in start_ranks(server, program, folder, **arguments)]
    assert not any(codes), f"exit codes {codes}\n{server.output()}"


def weights(folder: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    return torch.load(f"{folder}-rank{rank}.pt", weights_only=True)


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(Path(f"{folder}-rank{rank}.json").read_text()) for rank in range(2)]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in RunFolder(folder).metrics.read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    server.run("run", folder=str(folder), learner=PLAIN, settings={"clip_grad": 0.5})
    return folder


def assert_like(folder: Path, alone: Path) -> None:
    expected = weights(alone)
    for rank in range(2):
        ours = weights(folder, rank)
        for name, tensor in expected.items():
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)
    assert losses(folder) == pytest.approx(losses(alone), abs=1e-6)
    assert [result["is_main"] for result in results(folder)] == [True, False]


def test_torchrun_with_two_processes_agrees_with_one(alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = json.dumps({"learner": PLAIN, "settings": {"clip_grad": 0.5}})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "tests.engine.programs", str(folder), arguments]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=200)
    assert_like(folder, alone)


@pytest.mark.slow
def test_two_devices_without_torchrun_agree_with_one(alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = json.dumps({"learner": PLAIN, "settings": {"clip_grad": 0.5, "devices": 2}})
    command = [sys.executable, "-m", "tests.engine.programs", str(folder), arguments]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=200)
    assert_like(folder, alone)


def test_accumulating_on_two_ranks_agrees_with_one_process(
    server: Server, alone: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    settings = {"clip_grad": 0.5, "accumulate": 2}
    for pid in start_ranks(server, "run", folder, learner=PLAIN, settings=settings):
        assert server.wait(pid) == 0, server.output()
    assert_like(folder, alone)


def test_nothing_of_ddp_outlives_the_group(server: Server, tmp_path: Path) -> None:
    # A reducer that takes the gloo group with it can wait forever for a thread that waits for the interpreter's lock.
    folder = tmp_path / "run"
    for pid in start_ranks(server, "count_left", folder, learner=PLAIN, settings={}):
        assert server.wait(pid) == 0, server.output()
    assert [Path(f"{folder}-left-{rank}").read_text() for rank in range(2)] == ["0", "0"]


def test_a_signal_to_one_rank_stops_all_after_the_same_step(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = {"total_steps": 400}
    pids = start_ranks(server, "run", folder, learner=PLAIN, settings=settings, pause=0.01)
    wait_for_rows(folder, 3)
    os.kill(pids[1], signal.SIGTERM)
    for pid in pids:
        assert server.wait(pid) == 0, server.output()
    main, other = results(folder)
    assert main["stopped"] == other["stopped"] == "SIGTERM"
    assert main["step"] == other["step"] < 400
    assert list_checkpoints(RunFolder(folder).checkpoints)[0].step == main["step"]


def test_a_bad_loss_on_one_rank_stops_all(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    learner = {**PLAIN, "bad_at": 7, "bad_rank": 1}
    for pid in start_ranks(server, "diverge", folder, learner=learner):
        assert server.wait(pid) == 0, server.output()
    assert [result["step"] for result in results(folder)] == [7, 7]
    assert [checkpoint.step for checkpoint in list_checkpoints(RunFolder(folder).checkpoints)] == [5]


def test_two_ranks_resume_where_a_kill_left_them(server: Server, alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments: dict[str, Any] = {"learner": PLAIN, "settings": {"clip_grad": 0.5}}
    pids = start_ranks(server, "run", folder, hold_at=12, **arguments)
    wait_for_rows(folder, 3)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        assert server.wait(pid) == -signal.SIGKILL
    for pid in start_ranks(server, "run", folder, resume=True, **arguments):
        assert server.wait(pid) == 0, server.output()
    assert_like(folder, alone)


def test_torchrun_and_devices_must_agree(server: Server, tmp_path: Path) -> None:
    pids = start_ranks(server, "run", tmp_path / "run", settings={"devices": 3})
    assert [server.wait(pid) for pid in pids] == [1, 1]
    assert "torchrun started 2 process(es) on this node, but devices is 3" in server.output()


def test_a_group_that_is_up_must_fit_the_devices(server: Server, tmp_path: Path) -> None:
    port = free_port()
    pids = [
        server.start("run_in_group", rank=rank, port=port, folder=str(tmp_path / f"run-{rank}"))
        for rank in range(2)
    ]
    assert [server.wait(pid) for pid in pids] == [1, 1]
    assert "A process group of 2 is already up, but devices and num_nodes give 1" in server.output()


def test_two_ranks_train_in_bfloat16(server: Server, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    arguments: dict[str, Any] = {"learner": PLAIN, "settings": {"precision": "bf16-mixed"}}
    server.run("run", folder=str(folders[0]), **arguments)
    for pid in start_ranks(server, "run", folders[1], **arguments):
        assert server.wait(pid) == 0, server.output()
    assert losses(folders[1]) == pytest.approx(losses(folders[0]), abs=1e-3)

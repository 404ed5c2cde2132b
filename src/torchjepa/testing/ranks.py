"""Run a function on several processes of one machine, so that multi-process code has plain tests."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext


@dataclass(frozen=True)
class _Outcome:
    """What a rank leaves behind: its result or its exception, the traceback's text, and when."""

    result: Any = None
    error: BaseException | None = None
    trace: str = ""
    time_ns: int = 0


def run_on_ranks(fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """Call `fn(*args)` on every rank of a gloo process group on the CPU.

    Inside, `torchjepa.dist.rank()` tells the ranks apart. Each process has one thread.

    Args:
        fn: a function of a module (a lambda or a nested function does not reach another process).
        world_size: number of processes.
        args: arguments of fn, the same on every rank; picklable.
        timeout: seconds after which the processes are ended and TimeoutError is raised.

    Returns:
        What fn returned, by rank.

    Raises:
        ValueError: world_size is below 1, or fn or args cannot be pickled.
        TimeoutError: a rank was still running after `timeout` seconds.
        RuntimeError: a rank died without a Python exception.
        BaseException: whatever fn raised first on any rank, with that rank's traceback as a note.
    """
    if world_size < 1:
        raise ValueError(f"run_on_ranks: world_size must be at least 1, got {world_size!r}.")
    call = _pickled(fn, args)
    context = _context()
    with tempfile.TemporaryDirectory(prefix="torchjepa-ranks-") as folder:
        processes = [
            context.Process(target=_rank_main, args=(rank, world_size, folder, call, timeout), daemon=True)
            for rank in range(world_size)
        ]
        try:
            for process in processes:
                process.start()
            _wait_for_all(processes, Path(folder), timeout)
        finally:
            _end(processes)
        return _results(Path(folder), world_size)


def _pickled(fn: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps((fn, args))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"run_on_ranks: fn and its arguments must be picklable, a function of a module and plain "
            f"values or tensors; got {fn!r}: {error}"
        ) from error


def _context() -> ForkServerContext | SpawnContext:
    # A fork server imports torch once for all calls; where there is none every process imports it again.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed"])
    return context


def _rank_main(rank: int, world_size: int, folder: str, call: bytes, timeout: float) -> None:
    try:
        torch.set_num_threads(1)
        fn, args = pickle.loads(call)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
        outcome = _Outcome(result=fn(*args))
        # No rank leaves while another still talks to it.
        dist.barrier()
        dist.destroy_process_group()
    except BaseException as error:
        outcome = _Outcome(error=error, trace=traceback.format_exc(), time_ns=time.time_ns())
    _leave(Path(folder) / f"rank-{rank}", outcome)


def _leave(path: Path, outcome: _Outcome) -> None:
    try:
        data = pickle.dumps(outcome)
        pickle.loads(data)  # an exception with arguments of its own pickles well and fails to load
    except Exception as error:
        text = outcome.trace or f"the result cannot be pickled: {error}"
        data = pickle.dumps(_Outcome(error=RuntimeError(text), trace=text, time_ns=outcome.time_ns))
    partial = path.with_suffix(".partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def _wait_for_all(processes: Sequence[BaseProcess], folder: Path, timeout: float) -> None:
    """Until every rank has ended, or one has failed: the others may wait for it for ever."""
    deadline = time.monotonic() + timeout
    running = dict(enumerate(processes))
    while running:
        wait(
            [process.sentinel for process in running.values()], timeout=max(0.0, deadline - time.monotonic())
        )
        ended = [rank for rank, process in running.items() if not process.is_alive()]
        outcomes = {rank: _read(folder, rank) for rank in ended}
        for rank, outcome in outcomes.items():
            code = running.pop(rank).exitcode
            if outcome is None:
                raise RuntimeError(f"run_on_ranks: rank {rank} died without an exception, exit code {code}.")
        if any(outcome.error is not None for outcome in outcomes.values() if outcome is not None):
            return
        if running and time.monotonic() >= deadline:
            raise TimeoutError(f"run_on_ranks: ranks {sorted(running)} still ran after {timeout} seconds.")


def _end(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        if process.pid is not None and process.is_alive():
            process.kill()
    for process in processes:
        if process.pid is not None:
            process.join()


def _results(folder: Path, world_size: int) -> list[Any]:
    outcomes = [_read(folder, rank) for rank in range(world_size)]
    failed = [
        (outcome.time_ns, rank, outcome)
        for rank, outcome in enumerate(outcomes)
        if outcome is not None and outcome.error is not None
    ]
    if failed:
        # The first failure is the cause; the others are ranks that lost their peer.
        _, rank, outcome = min(failed, key=lambda entry: entry[:2])
        assert outcome.error is not None
        outcome.error.add_note(f"on rank {rank} of {world_size}:\n{outcome.trace}")
        raise outcome.error
    return [outcome.result for outcome in outcomes if outcome is not None]


def _read(folder: Path, rank: int) -> _Outcome | None:
    path = folder / f"rank-{rank}"
    return pickle.loads(path.read_bytes()) if path.exists() else None

"""What the tests run in processes of their own; arguments are JSON, results are files."""

from __future__ import annotations

import functools
import gc
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from tests.engine import joined, tiny
from torchjepa.engine import KeyedSampler, MetricsFile, Run, RunFolder, TensorBoard, train
from torchjepa.types import Batch, Loss


def run(
    folder: str,
    *,
    resume: bool = False,
    pause: float = 0.0,
    hold_at: int | None = None,
    workers: int = 0,
    learner: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    hooks: Sequence[Any] = (),
) -> None:
    """Train the tiny learner; every rank leaves its result and its weights beside the run."""
    torch.set_num_threads(1)
    model = tiny.TinyLearner(**(learner or {}))
    where = RunFolder.open(folder) if resume else RunFolder.create(folder, {})
    load = functools.partial(_worker_batches, workers) if workers else tiny.batches
    result = train(
        model,
        functools.partial(_slowly, pause, hold_at, load),
        num_samples=tiny.NUM_SAMPLES,
        settings=tiny.settings(**(settings or {})),
        folder=where,
        hooks=[*([MetricsFile(), TensorBoard()] if not pause else [MetricsFile()]), *hooks],
        resume=resume,
    )
    rank = 0 if result.is_main else 1
    torch.save(model.state_dict(), f"{folder}-rank{rank}.pt")
    Path(f"{folder}-rank{rank}.json").write_text(json.dumps(asdict(result)))


def run_joined(
    folder: str,
    *,
    kind: str,
    settings: dict[str, Any],
    dtype: str = "float64",
    bad_at: int = -1,
    bad_row: int = 0,
) -> None:
    """Train a learner that couples samples; every rank leaves its weights beside the run."""
    torch.set_num_threads(1)
    model = joined.build(kind, dtype)
    result = train(
        model,
        joined.Pictures(dtype, bad_at, bad_row),
        num_samples=joined.NUM_SAMPLES,
        settings=tiny.settings(**settings),
        folder=RunFolder.create(folder, {}),
        hooks=[MetricsFile()],
    )
    torch.save(model.state_dict(), f"{folder}-rank{0 if result.is_main else 1}.pt")


def count_left(folder: str, **arguments: Any) -> None:
    """Like `run`, and leaves how many wrappers of DDP are alive when the process group ends."""
    from torch.nn.parallel import DistributedDataParallel

    destroy = torch.distributed.destroy_process_group

    def look() -> None:
        left = sum(type(each) is DistributedDataParallel for each in gc.get_objects())
        Path(f"{folder}-left-{torch.distributed.get_rank()}").write_text(str(left))
        destroy()

    torch.distributed.destroy_process_group = look
    run(folder, **arguments)


def diverge(folder: str, *, training: str = "run", **arguments: Any) -> None:
    """Like `run` or another training, and leaves the error's step."""
    from torchjepa.engine import DivergedError, is_main_process

    try:
        globals()[training](folder, **arguments)
    except DivergedError as error:
        rank = 0 if is_main_process() else 1
        Path(f"{folder}-rank{rank}.json").write_text(json.dumps({"step": error.step, "error": str(error)}))


def stop_by_hook(folder: str, *, at: int) -> None:
    """Like `run`, with a hook that asks for the end after a step."""

    class Stopper:
        def on_step(self, run: Run, step: int, loss: Loss) -> None:
            if step == at:
                run.stop("enough")

    run(folder, hooks=[Stopper()])


def run_in_group(rank: int, port: int, **arguments: Any) -> None:
    """`run` in a process group of two that somebody else has set up."""
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    run(**arguments)


def _slowly(
    pause: float, hold_at: int | None, load: Any, sampler: KeyedSampler, device: torch.device
) -> Iterator[Batch]:
    """Batches with a pause before each; none from step `hold_at` on, so that a kill comes in time."""
    for number, batch in enumerate(load(sampler, device)):
        time.sleep(600.0 if sampler.start_step + number == hold_at else pause)
        yield batch


def _worker_batches(workers: int, sampler: KeyedSampler, device: torch.device) -> Iterator[Batch]:
    data = tiny.TinyData(sampler.num_samples)
    yield from DataLoader(
        data,
        sampler=sampler,
        batch_size=None,
        num_workers=workers,
        collate_fn=tiny.as_it_is,
        worker_init_fn=_outlast_sigterm,
    )


def _outlast_sigterm(worker: int) -> None:
    # torch gives its workers a handler that dies of any SIGTERM but the parent's.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(30))


if __name__ == "__main__":
    run(sys.argv[1], **json.loads(sys.argv[2]))

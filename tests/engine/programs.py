"""What the tests run in processes of their own; arguments are JSON, results are files."""

from __future__ import annotations

import functools
import gc
import json
import os
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
    resume: bool = False,
    stop_at: int | None = None,
    hooks: Sequence[Any] = (),
) -> None:
    """Train a learner that couples samples; every rank leaves its weights beside the run."""
    torch.set_num_threads(1)
    model = joined.build(kind, dtype)
    result = train(
        model,
        joined.Pictures(dtype, bad_at, bad_row),
        num_samples=joined.NUM_SAMPLES,
        settings=tiny.settings(**settings),
        folder=RunFolder.open(folder) if resume else RunFolder.create(folder, {}),
        hooks=[MetricsFile(), *hooks, *([] if stop_at is None else [Stopper(stop_at)])],
        resume=resume,
    )
    torch.save(model.state_dict(), f"{folder}-rank{0 if result.is_main else 1}.pt")


def run_joined_many(folder: str, *, jobs: dict[str, dict[str, Any]]) -> None:
    """`run_joined` for every job, one after the other in one process group, each in a folder of its own."""
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
    for name, job in jobs.items():
        run_joined(f"{folder}/{name}", **job)
    if "RANK" in os.environ:
        torch.distributed.destroy_process_group()


def rewrite(folder: str, *, source: str, kind: str, settings: dict[str, Any]) -> None:
    """Take up the newest checkpoint of `source` and save what was taken up in `folder`."""
    from torchjepa.engine import checkpoint as ckpt
    from torchjepa.engine.devices import launch
    from torchjepa.engine.step import Stepper

    torch.set_num_threads(1)
    fabric = launch(tiny.settings(**settings))
    stepper = Stepper(fabric, joined.build(kind), tiny.settings(**settings))
    found = ckpt.list_checkpoints(RunFolder(source).checkpoints)[0]
    training = found.training()
    stepper.load_state(found.tensors(), training)
    training = {**training, **stepper.state()}
    checkpoints = RunFolder(folder).checkpoints
    ckpt.save_checkpoint(
        checkpoints, found.step, stepper.trained, training, keep=1, is_main=fabric.is_global_zero
    )
    fabric.barrier()


def probe(folder: str, **arguments: Any) -> None:
    """Like `run_joined`, with hooks that look at the weights, with notice and without."""
    from torchjepa.engine import Probe

    class Intruder:
        def on_step(self, run: Run, step: int, loss: Loss) -> dict[str, float]:
            return {"without_notice": float(next(run.learner.parameters()).is_meta)}

    def look(learner: torch.nn.Module) -> dict[str, float]:
        return {"mean": float(learner.encode(torch.ones(2, 1, 8, 8)).square().mean())}

    run_joined(folder, hooks=[Intruder(), Probe(7, look)], **arguments)


def watch_update(folder: str, *, kind: str, settings: dict[str, Any]) -> None:
    """Three updates; every rank leaves what it said and heard in the third, and how its tensors lie."""
    from torchjepa.engine.devices import launch
    from torchjepa.engine.sharding import local
    from torchjepa.engine.step import Stepper
    from torchjepa.engine.traffic import Traffic

    torch.set_num_threads(1)
    fabric = launch(tiny.settings(**settings))
    stepper = Stepper(fabric, joined.build(kind, "float32"), tiny.settings(**settings))
    rank, size = fabric.global_rank, fabric.world_size
    sampler = KeyedSampler(
        joined.NUM_SAMPLES,
        8,
        seed=0,
        total_steps=3,
        accumulate=stepper._settings.accumulate,
        rank=rank,
        world_size=size,
    )
    stream = joined.Pictures("float32")(sampler, fabric.device)
    for step in range(2):  # in the second DDP still arranges its buckets
        stepper.update(stream, step)
    moves, all_of_it = Traffic(), Traffic()
    after_step = stepper.trained.after_step

    def watched(step: int) -> None:
        with moves:
            after_step(step)

    stepper.trained.after_step = watched
    with all_of_it:
        stepper.update(stream, 2)
    layout = {
        name: [list(value.shape), list(local(value).shape)]
        for name, value in stepper.trained.state_dict().items()
    }
    seen = {"calls": all_of_it.calls, "bytes": all_of_it.bytes, "ema": moves.calls, "layout": layout}
    Path(f"{folder}-{rank}.json").write_text(json.dumps(seen))


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


class Stopper:
    def __init__(self, at: int) -> None:
        self._at = at

    def on_step(self, run: Run, step: int, loss: Loss) -> None:
        if step == self._at:
            run.stop("enough")


def stop_by_hook(folder: str, *, at: int) -> None:
    """Like `run`, with a hook that asks for the end after a step."""

    run(folder, hooks=[Stopper(at)])


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

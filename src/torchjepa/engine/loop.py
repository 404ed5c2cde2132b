"""The loop: micro-batches, the update, what the learner does after it, rows and checkpoints."""

from __future__ import annotations

import gc
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from torchjepa import dist
from torchjepa.engine import checkpoint as ckpt
from torchjepa.engine.devices import launch
from torchjepa.engine.run import Run, RunFolder, TrainResult
from torchjepa.engine.sampler import KeyedSampler
from torchjepa.engine.settings import TrainSettings
from torchjepa.engine.signals import StopSignals
from torchjepa.engine.step import Stepper, Update
from torchjepa.engine.watch import DivergedError, Stopwatch, Vote, all_finite
from torchjepa.types import Batch, Learner, NonFiniteError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Batches = Callable[[KeyedSampler, torch.device], Iterator[Batch]]


def train(
    learner: nn.Module,
    batches: Batches,
    *,
    num_samples: int,
    settings: TrainSettings,
    folder: RunFolder,
    hooks: Sequence[Any] = (),
    resume: bool = False,
) -> TrainResult:
    """Train a learner, from the start or from its newest whole checkpoint.

    For every step s: g = grad of the mean over micro-batches of `learner.loss(batch, s).total`, of a
    `types.SplitLearner` that of the whole batch; AdamW with `learning_rate(s)` and `weight_decay(s)`;
    `learner.after_step(s)`. The learner is trained in place. With strategy "fsdp" on several processes that of the
    main process has the weights afterwards, and those of the others have shapes only (the meta device).
    SIGINT and SIGTERM end the run after the step at hand, with a checkpoint; a second SIGINT interrupts at
    once. torch's global generator is seeded for every micro-batch, from the run's seed and the step.

    Args:
        learner: an `nn.Module` with the methods of `types.Learner`.
        batches: from the sampler of this process and its device to the micro-batches, in the sampler's
            order; `data.BatchStream.batches` for instance.
        num_samples: size of the training set.
        settings: how to train.
        folder: where the run is kept.
        hooks: see `engine.hooks`.
        resume: continue the run of this folder.

    Returns:
        How it ended; with several processes only the main one (`is_main`) should go on to judge; a
        process group that `train` set up is gone by then.

    Raises:
        ValueError: the folder holds checkpoints and `resume` was not asked for, or holds no run and it was;
            the settings or the learner are not those of the run; no checkpoint is whole; the batch does
            not split evenly; the device cannot do the precision.
        DivergedError: the loss is NaN or infinite, or a regularizer says so of what it was given; the last good
            checkpoint stays.
    """
    if not isinstance(learner, nn.Module) or not isinstance(learner, Learner):
        raise ValueError(
            "train: learner must be an nn.Module with the methods loss, after_step, encode and scheduled, "
            f"got {type(learner).__name__}."
        )
    _check_folder(folder, resume)
    had_group = _has_group()
    with StopSignals() as signals:
        try:
            return _train(learner, batches, num_samples, settings, folder, hooks, resume, signals)
        finally:
            if _has_group() and not had_group:
                # DDP's reducer must be gone before the group: as the group's last owner it would wait for a gloo
                # thread with the interpreter's lock held, and that thread may be waiting for the lock.
                gc.collect()
                torch.distributed.destroy_process_group()


def _train(
    learner: nn.Module,
    batches: Batches,
    num_samples: int,
    settings: TrainSettings,
    folder: RunFolder,
    hooks: Sequence[Any],
    resume: bool,
    signals: StopSignals,
) -> TrainResult:
    # Apart from `train`, so that whatever holds the process group is gone when this returns.
    fabric = launch(settings)
    training = _Training(fabric, _run(fabric, learner, num_samples, settings, folder, hooks), hooks)
    if resume:
        training.restore()
    return training.go(batches, signals)


def _check_folder(folder: RunFolder, resume: bool) -> None:
    if resume:
        RunFolder.open(folder.path)
    elif ckpt.list_checkpoints(folder.checkpoints):
        raise ValueError(
            f"{folder.path} already holds a run with checkpoints. "
            "Continue it with --resume, or give another name."
        )


def _has_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _run(
    fabric: Fabric,
    learner: nn.Module,
    num_samples: int,
    settings: TrainSettings,
    folder: RunFolder,
    hooks: Sequence[Any],
) -> Run:
    return Run(
        learner=learner,
        settings=settings,
        folder=folder,
        device=fabric.device,
        num_samples=num_samples,
        world_size=fabric.world_size,
        is_main=fabric.is_global_zero,
        log_periods=tuple(hook.every for hook in hooks if hasattr(hook, "every")),
    )


class _Training:
    def __init__(self, fabric: Fabric, run: Run, hooks: Sequence[Any]) -> None:
        self._fabric = fabric
        self._run = run
        self._learner = run.learner
        self._settings = run.settings
        self._hooks = hooks if run.is_main else ()
        self._sampler()  # refuses a batch that does not split before anything is set up
        self._stepper = Stepper(fabric, run.learner, run.settings)
        self._vote = Vote()
        self._watch = Stopwatch()
        self._pending: dict[str, Any] = {}

    def _sampler(self) -> KeyedSampler:
        settings = self._settings
        return KeyedSampler(
            self._run.num_samples,
            settings.global_batch_size,
            seed=settings.seed,
            total_steps=settings.total_steps,
            start_step=self._run.start_step,
            accumulate=settings.accumulate,
            rank=self._fabric.global_rank,
            world_size=self._fabric.world_size,
        )

    def restore(self) -> None:
        """Take up the newest whole checkpoint; the main process chooses."""
        run, folder = self._run, self._run.folder
        found = self._fabric.broadcast(ckpt.newest_checkpoint(folder.checkpoints) if run.is_main else None)
        if found is None:
            _say(run, f"{folder.path} holds no checkpoint yet; the run begins again at step 0.")
            return
        training, tensors = found.training(), found.tensors()
        ckpt.check_same_run(_identity(run), training["identity"], found.path)
        ckpt.check_same_tensors(self._learner, tensors, found.path)
        self._stepper.load_state(tensors, training)
        run.start_step = run.step = found.step
        run.seconds = training["seconds"]
        if run.step == self._settings.total_steps:
            _say(run, f"{folder.path} is finished: all {run.step} steps are done.")

    def go(self, batches: Batches, signals: StopSignals) -> TrainResult:
        """Every step that is left, after which the main process' learner holds the weights."""
        stopped = self._all_steps(batches, signals) if self._run.step < self._settings.total_steps else None
        self._stepper.hand_back()
        return TrainResult(self._run.step, stopped, self._run.is_main)

    def _all_steps(self, batches: Batches, signals: StopSignals) -> str | None:
        run, total_steps = self._run, self._settings.total_steps
        stopped: str | None = None
        with ExitStack() as stack:
            for hook in self._hooks:
                if hasattr(hook, "on_end"):
                    stack.callback(hook.on_end, run)
                if hasattr(hook, "on_start"):
                    hook.on_start(run)
            stream = iter(batches(self._sampler(), self._fabric.device))
            if hasattr(stream, "close"):
                stack.callback(stream.close)  # type: ignore[attr-defined]
            self._watch = Stopwatch(run.seconds, run.step)
            while run.step < total_steps and stopped is None:
                stopped = self._step(stream, run.step, signals)
        # A signal may have come during the last checkpoint.
        return stopped or _signal_name(signals.received)

    def _step(self, stream: Iterator[Batch], step: int, signals: StopSignals) -> str | None:
        """One update and what follows it; why to stop, `None` to go on."""
        try:
            update = self._stepper.update(stream, step)
        except NonFiniteError as error:  # from global statistics, hence on every rank
            raise self._diverged(step, str(error).rstrip(".")) from error
        run = self._run
        run.step = step + 1
        stopped, looks = self._ask_all(signals, step)
        logs = run.logs(step)
        saves = stopped is not None or self._settings.last_or_every(step, self._settings.checkpoint_every)
        if logs or saves or self._fabric.device.type == "cpu":  # on a GPU a look waits for it
            self._check_losses()
        row = self._row(step, update) if logs else None
        with self._watch.aside():
            with self._stepper.weights() if looks else nullcontext():
                self._tell_hooks(step, update, row)
            if saves:
                self._save(step)
        return stopped

    def _ask_all(self, signals: StopSignals, step: int) -> tuple[str | None, bool]:
        """Why to stop, `None` to go on; and whether a hook will look at the weights."""
        run = self._run
        looks = any(hook.needs_weights(run, step) for hook in self._hooks if hasattr(hook, "needs_weights"))
        # Hooks ask for the end after a step, so the processes hear of it in the next one.
        received, asked, looks = self._vote(signals.received, int(run.stop_reason is not None), int(looks))
        return _signal_name(received) or ((run.stop_reason or "a hook") if asked else None), bool(looks)

    def _check_losses(self) -> None:
        total, first_bad = self._settings.total_steps, self._stepper.bad.read()
        # The largest of total - step belongs to the first step; 0 says that there is none.
        (left,) = self._vote(total - first_bad if first_bad >= 0 else 0)
        if left:
            raise self._diverged(total - left, "the loss is NaN or infinite")

    def _diverged(self, step: int, what: str) -> DivergedError:
        kept = ckpt.list_checkpoints(self._run.folder.checkpoints)
        last = f"The last good checkpoint is {kept[0].path}." if kept else "There is no checkpoint yet."
        return DivergedError(
            step,
            f"Training stopped at step {step}: {what}. {last} "
            "Try a lower learning rate, a longer warm-up or clip_grad, and look for NaN in the data.",
        )

    def _row(self, step: int, update: Update) -> dict[str, Any]:
        """The figures of a step; one transfer from the device."""
        run, settings = self._run, self._settings
        values = dist.all_reduce_sum(torch.stack([value.float() for value in update.means.values()]))
        values = values / run.world_size
        names = list(update.means)
        if update.grad_norm is not None:  # the same on every rank
            values = torch.cat([values, update.grad_norm.float().reshape(1)])
            names.append("grad_norm")
        figures = dict(zip(names, values.tolist()))
        run.samples_per_second = self._watch.steps_per_second(run.step) * settings.global_batch_size
        run.seconds = self._watch.seconds()
        return {
            "step": step,
            "epoch": run.epoch,
            **figures,
            "lr": float(settings.learning_rate(step)),
            "weight_decay": float(settings.weight_decay(step)),
            **_plain(cast(Learner, self._learner).scheduled(step)),
            "samples_per_second": run.samples_per_second,
            "seconds": run.seconds,
        }

    def _tell_hooks(self, step: int, update: Update, row: dict[str, Any] | None) -> None:
        for hook in self._hooks:
            if hasattr(hook, "on_step"):
                self._pending.update(_plain(hook.on_step(self._run, step, update.loss) or {}))
        if row is None:
            return
        row.update(self._pending)
        self._pending = {}
        for hook in self._hooks:
            if hasattr(hook, "on_log"):
                hook.on_log(step, row)

    def _save(self, step: int) -> None:
        """A checkpoint of a state known to be good; the main process writes, the others wait."""
        (bad,) = self._vote(int(not all_finite(self._stepper.state_tensors())))
        if bad:
            raise self._diverged(step, "weights or optimizer state hold NaN or infinity")
        run = self._run
        training = {**self._stepper.state(), "identity": _identity(run), "seconds": self._watch.seconds()}
        ckpt.save_checkpoint(
            run.folder.checkpoints,
            run.step,
            self._stepper.trained,
            training,
            keep=self._settings.keep_checkpoints,
            is_main=run.is_main,
        )
        self._fabric.barrier()


def _identity(run: Run) -> dict[str, Any]:
    """What makes a run this run, and not another; a resume must agree with it."""
    learner, total_steps = cast(Learner, run.learner), run.settings.total_steps
    scheduled = [_plain(learner.scheduled(total_steps * quarter // 4)) for quarter in range(4)]
    return {**run.settings.identity(), "num_samples": run.num_samples, "scheduled": scheduled}


def _signal_name(number: int) -> str | None:
    return signal.Signals(number).name if number else None


def _plain(figures: Mapping[str, Any]) -> dict[str, float | None]:
    """Python floats, whatever a hook or a learner computed with."""
    return {name: None if value is None else float(value) for name, value in figures.items()}


def _say(run: Run, message: str) -> None:
    if run.is_main:
        warnings.warn(message, stacklevel=4)

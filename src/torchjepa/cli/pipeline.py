"""The whole of `jepa train`: data, learner, training, and what follows it."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from torchjepa.cli.devices import pick_device
from torchjepa.cli.finish import batch_stream, deployable, finish, is_finished, make_judge
from torchjepa.cli.judging import fewer, has_labels
from torchjepa.cli.request import Request
from torchjepa.cli.run_json import describe_run, read_run, resume_command, resumed_run
from torchjepa.data import DataSplit
from torchjepa.engine import RunFolder, TrainResult, is_main_process, train, write_json
from torchjepa.engine.hooks import Doctor, Health, MetricsFile, Probe, Progress, TensorBoard
from torchjepa.engine.sampler import check_divisible
from torchjepa.evaluation import diagnose, measure_health
from torchjepa.recipes.base import Recipe

Say = Callable[[str], None]


def train_and_judge(request: Request) -> int:
    """Run a recipe from its data to its report; the exit code.

    Raises:
        ValueError: the run's folder is taken, the data cannot be read, or the settings do not fit.
        DivergedError: the loss became NaN or infinite; the last good checkpoint stays.
    """
    recipe = request.recipe
    # Flushed, so that a log file shows them while the run goes on.
    say: Say = partial(print, flush=True) if is_main_process() else lambda text: None
    path = Path(recipe.runs) / str(recipe.name)
    check_early(recipe, path, request.resume)
    split = recipe.open_data()
    say(split.description)
    total_steps = recipe.total_steps(len(split.train))
    learner = recipe.seeded_learner(split.train.num_channels, total_steps)
    deployable(learner)  # refused now, and not after the last step
    millions = sum(p.numel() for p in learner.parameters() if p.requires_grad) / 1e6
    say(f"{type(learner).__name__}, {millions:.2f} M trainable parameters, {total_steps} steps, in {path}")
    folder = _folder(request, split, path, total_steps)
    result = _train(request, learner, split, folder, total_steps)
    if not result.is_main:
        return 0
    if result.stopped:
        return _say_stopped(result, path, say)
    if request.resume and is_finished(recipe, split, folder):
        say(
            f"All {total_steps} steps are done and judged; nothing is left to do. The report: {folder.report}"
        )
        return 0
    diagnosis = finish(recipe, request.recipe_name, learner, split, folder, total_steps, say)
    return 1 if recipe.on_collapse == "stop" and diagnosis.exit_code == 1 else 0


def _say_stopped(result: TrainResult, path: Path, say: Say) -> int:
    command = resume_command(path)
    text = f"Stopped by {result.stopped} after step {result.step}; all is kept."
    if str(result.stopped).startswith("SIG"):
        say(f"{text} Go on with: {command}")
        return 0
    say(
        f"{text} Look at it with: jepa doctor {shlex.quote(str(path))}. Turn the knob in a new run (jepa train --from "
        f"{shlex.quote(str(path / 'run.json'))} --name ...), or go on as it is with: {command} --on-collapse warn"
    )
    return 1


def check_early(recipe: Recipe, path: Path, resume: bool) -> None:
    """Refuse what cannot work before any data are read.

    Raises:
        ValueError: a setting is out of its range, the device is missing, the folder is taken, or there is
            nothing to resume.
    """
    recipe.train_settings(recipe.steps)
    check_divisible(recipe.batch_size, recipe.accumulate, 1)
    pick_device(recipe.accelerator)
    if not is_main_process():
        return
    if resume:
        RunFolder.open(path)
    elif (path / "run.json").exists():
        raise ValueError(
            f"{path} already holds a run. Go on with it by --resume, or give the new one a --name."
        )


def _folder(request: Request, split: DataSplit, path: Path, total_steps: int) -> RunFolder:
    if not request.resume:
        return RunFolder.create(path, describe_run(request, split, total_steps))
    folder = RunFolder.open(path)
    stored = read_run(folder.run_json)
    content = resumed_run(request, stored, split)
    if is_main_process() and content != stored.content:
        write_json(folder.run_json, content)
    return folder


def _train(
    request: Request, learner: nn.Module, split: DataSplit, folder: RunFolder, total_steps: int
) -> TrainResult:
    recipe = request.recipe
    try:
        return train(
            learner,
            batch_stream(recipe, split, folder).batches,
            num_samples=len(split.train),
            settings=recipe.train_settings(total_steps),
            folder=folder,
            hooks=_hooks(recipe, split, folder),
            resume=request.resume,
        )
    except BaseException:
        if not request.resume and is_main_process():
            _clear_if_empty(folder)
        raise


def _clear_if_empty(folder: RunFolder) -> None:
    # A run that failed before its first row would only be in the way of the next try.
    begun = folder.metrics.is_file() and folder.metrics.stat().st_size > 0
    if not begun and not folder.checkpoints.exists() and not folder.data_errors.exists():
        shutil.rmtree(folder.path)


def _hooks(recipe: Recipe, split: DataSplit, folder: RunFolder) -> list[Any]:
    hooks: list[Any] = [Health(measure_health)]
    few = fewer(split, recipe.probe_samples, max(1, recipe.probe_samples // 4), recipe.seed)
    if recipe.probe_every and has_labels(few):
        hooks.append(Probe(recipe.probe_every, _probe(recipe, few, folder)))
    hooks += [MetricsFile(), Progress()]
    if recipe.doctor_every:
        hooks.append(Doctor(diagnose, recipe.doctor_every, recipe.on_collapse))
    if recipe.tensorboard:
        hooks.append(TensorBoard())
    return hooks


def _probe(recipe: Recipe, few: DataSplit, folder: RunFolder) -> Callable[[nn.Module], dict[str, float]]:
    def probe(learner: nn.Module) -> dict[str, float]:
        device = next(learner.parameters()).device
        judge = make_judge(recipe, few, folder, device, part="probed")
        return {"knn": judge.knn(deployable(learner))}

    return probe

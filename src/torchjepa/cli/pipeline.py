"""The whole of `jepa train`: data, learner, training, the deployable encoder, scores, report."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

import torchjepa
from torchjepa.cli.judging import Judge, fewer, has_labels
from torchjepa.cli.train import Request, describe
from torchjepa.data import BatchStream, DataSplit, ErrorLog, open_data
from torchjepa.engine import KeyedSampler, RunFolder, TrainResult, is_main_process, train
from torchjepa.engine.hooks import Health, MetricsFile, Probe, Progress, TensorBoard
from torchjepa.evaluation import measure_health, score_table, write_scores
from torchjepa.hub import save_encoder
from torchjepa.recipes.base import Recipe
from torchjepa.report import Gatherer, write_report


def train_and_judge(request: Request) -> int:
    """Run a recipe from its data to its report; the exit code.

    Raises:
        ValueError: the run's folder is taken, the data cannot be read, or the settings do not fit.
    """
    recipe = request.recipe
    say: Callable[[str], None] = print if is_main_process() else lambda text: None
    path = Path(recipe.runs) / str(recipe.name)
    refuse_taken(path, request.resume)
    split = open_data(
        recipe.data,
        test_data=recipe.test_data,
        holdout=recipe.holdout,
        seed=recipe.seed,
        # JPEGs are decoded at a reduced size that still serves twice the resolution of the network.
        min_size=2 * recipe.image_size,
    )
    say(split.description)
    total_steps = recipe.total_steps(len(split.train))
    learner = recipe.seeded_learner(split.train.num_channels, total_steps)
    num_parameters = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    say(
        f"{type(learner).__name__} with {num_parameters / 1e6:.2f} M trainable parameters; {total_steps} steps."
    )
    folder = RunFolder.open(path) if request.resume else RunFolder.create(path, run_json(request, split))
    result = _train(recipe, learner, split, folder, request.resume, total_steps)
    if not result.is_main:
        return 0
    if result.stopped:
        say(
            f"Stopped by {result.stopped} after step {result.step}; the checkpoint is written. Go on with: "
            f"jepa train {request.recipe_name} --name {recipe.name} --runs {recipe.runs} --resume"
        )
        return 0
    finish(recipe, request.recipe_name, learner, split, folder, total_steps, say)
    return 0


def refuse_taken(path: Path, resume: bool) -> None:
    """Say at once, before any data is read, that a folder is taken or that there is nothing to resume."""
    if not is_main_process():
        return
    if resume:
        RunFolder.open(path)
    elif (path / "run.json").exists():
        raise ValueError(
            f"{path} already holds a run. Go on with it by --resume, or give the new one a --name."
        )


def run_json(request: Request, split: DataSplit) -> dict[str, Any]:
    """Everything that repeating the run takes, and what it ran on."""
    versions = {
        "torchjepa": torchjepa.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine()
    )
    return {
        **describe(request),
        "seed": request.recipe.seed,
        "versions": versions,
        "data": {
            "description": split.description,
            "train": split.train.fingerprint(),
            "test": split.test.fingerprint(),
            "classes": list(split.train.classes),
        },
        "device": {"name": device, "platform": platform.platform(), "threads": torch.get_num_threads()},
    }


def _train(
    recipe: Recipe, learner: nn.Module, split: DataSplit, folder: RunFolder, resume: bool, total_steps: int
) -> TrainResult:
    stream = batch_stream(recipe, split, folder)
    hooks: list[Any] = [Health(measure_health)]
    if recipe.probe_every and has_labels(split):
        hooks.append(Probe(recipe.probe_every, _probe(recipe, split, folder)))
    hooks += [MetricsFile(), Progress()]
    if recipe.tensorboard:
        hooks.append(TensorBoard())
    return train(
        learner,
        stream.batches,
        num_samples=len(split.train),
        settings=recipe.train_settings(total_steps),
        folder=folder,
        hooks=hooks,
        resume=resume,
    )


def batch_stream(recipe: Recipe, split: DataSplit, folder: RunFolder) -> BatchStream:
    """The augmented training batches of a recipe."""
    path = folder.data_errors if is_main_process() else None
    return BatchStream(
        split.train,
        recipe.build_transform(recipe.preprocessing(split.train.num_channels)),
        seed=recipe.seed,
        num_workers=recipe.num_workers,
        errors=ErrorLog(path, len(split.train), recipe.max_data_errors),
    )


def _probe(recipe: Recipe, split: DataSplit, folder: RunFolder) -> Callable[[nn.Module], dict[str, float]]:
    few = fewer(split, recipe.probe_samples, max(1, recipe.probe_samples // 4), recipe.seed)

    def probe(learner: nn.Module) -> dict[str, float]:
        return {"knn": make_judge(recipe, few, folder, _device_of(learner)).knn(deployable(learner))}

    return probe


def make_judge(recipe: Recipe, split: DataSplit, folder: RunFolder, device: torch.device) -> Judge:
    """The judge of a recipe's run."""
    return Judge(
        split,
        recipe.preprocessing(split.train.num_channels),
        recipe.pool_name,
        device,
        errors=folder.data_errors,
        max_errors=recipe.max_data_errors,
        precision=recipe.precision,
        seed=recipe.seed,
        num_workers=recipe.num_workers,
    )


def finish(
    recipe: Recipe,
    recipe_name: str,
    learner: nn.Module,
    split: DataSplit,
    folder: RunFolder,
    total_steps: int,
    say: Callable[[str], None],
) -> None:
    """What follows the last step: the deployable encoder, its scores, the report."""
    encoder = deployable(learner)
    preprocessing = recipe.preprocessing(split.train.num_channels)
    save_encoder(
        folder.encoder,
        encoder,
        pool=recipe.pool_name,
        preprocessing=preprocessing,
        extra={"recipe": recipe_name, "steps": total_steps, "classes": list(split.train.classes)},
    )
    say(f"The encoder is in {folder.encoder}.")
    device = _device_of(learner)
    untrained = deployable(recipe.seeded_learner(split.train.num_channels, total_steps)).to(device)
    notes: list[str] = []

    def tell(text: str) -> None:
        notes.append(text)
        say(text)

    few = fewer(split, recipe.judge_samples, None, recipe.seed)
    judge = make_judge(recipe, few, folder, device)
    if recipe.judge:
        scores, features = judge.scores(encoder.eval(), untrained, tell)
        if scores:
            write_scores(folder.scores, scores)
            Console().print(score_table(scores))
    else:
        features = {"encoder": judge.features(encoder), "untrained": judge.features(untrained)}
    material = gatherer(recipe, few, encoder, untrained, device).gather(
        features,
        next(iter(batch_stream(recipe, split, folder).batches(first_keys(recipe, split), device))),
        mask=getattr(learner, "mask", None),
        notes=notes,
    )
    say(f"The report is in {write_report(folder.path, material)}.")


def gatherer(
    recipe: Recipe, split: DataSplit, encoder: nn.Module, untrained: nn.Module, device: torch.device
) -> Gatherer:
    """What collects a run's pictures."""
    size = recipe.image_size
    return Gatherer(
        split=split,
        preprocessing=recipe.preprocessing(split.train.num_channels),
        grid=encoder.grid((size, size)),  # type: ignore[operator]
        encode=encoder,
        untrained=untrained,
        device=device,
        seed=recipe.seed,
    )


def first_keys(recipe: Recipe, split: DataSplit) -> KeyedSampler:
    """The samples of the first step, a few of them, to show what the learner sees."""
    return KeyedSampler(len(split.train), min(8, len(split.train)), seed=recipe.seed, total_steps=1)


def deployable(learner: nn.Module) -> nn.Module:
    """The encoder of a learner that is judged, saved and shipped.

    Raises:
        ValueError: the learner does not say which of its parts that is.
    """
    encoder = getattr(learner, "deployable_encoder", None)
    if not isinstance(encoder, nn.Module):
        raise ValueError(
            f"{type(learner).__name__} has no property `deployable_encoder`; give it one that returns the network "
            "to judge and to save (the target encoder of a masked model)."
        )
    return encoder


def _device_of(learner: nn.Module) -> torch.device:
    return next(learner.parameters()).device

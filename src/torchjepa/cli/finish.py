"""What follows the last step: the deployable encoder, its scores, the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing

import torch
from rich.console import Console
from torch import nn

from torchjepa.cli.examining import Examined, examine, in_a_line, loss_features, training_batches, with_doctor
from torchjepa.cli.judging import Judge, fewer, has_labels
from torchjepa.data import BatchStream, DataSplit, ErrorLog
from torchjepa.engine import KeyedSampler, RunFolder, is_main_process, write_json
from torchjepa.evaluation import Diagnosis, Features, diagnose, score_table, write_scores
from torchjepa.hub import save_encoder
from torchjepa.hub.encoder import is_own
from torchjepa.recipes.base import Recipe
from torchjepa.report import Gatherer, write_report
from torchjepa.report.curves import read_metrics
from torchjepa.types import Batch, MaskSampler

Say = Callable[[str], None]


def finish(
    recipe: Recipe,
    recipe_name: str,
    learner: nn.Module,
    split: DataSplit,
    folder: RunFolder,
    total_steps: int,
    say: Say,
) -> Diagnosis:
    """Write the encoder, the scores, the doctor's verdict and the report of a trained learner.

    Args:
        recipe: how it was trained.
        recipe_name: what that is called.
        learner: at its last step.
        split: the data it was trained on, and is judged on.
        folder: where everything goes.
        total_steps: number of updates done.
        say: tells the user.

    Returns:
        The doctor's verdict.
    """
    encoder, channels = deployable(learner), split.train.num_channels
    predictor = getattr(learner, "predictor", None)
    save_encoder(
        folder.encoder,
        encoder,
        pool=recipe.pool_name,
        preprocessing=recipe.preprocessing(channels),
        extra={"recipe": recipe_name, "steps": total_steps, "classes": list(split.train.classes)},
        parts={"predictor": predictor} if is_own(predictor) else None,  # type: ignore[dict-item]
    )
    say(f"The encoder is in {folder.encoder}")
    device = next(learner.parameters()).device
    untrained = deployable(recipe.seeded_learner(channels, total_steps)).to(device)
    notes: list[str] = []

    def tell(text: str) -> None:
        notes.append(text)
        say(text)

    few = fewer(split, recipe.judge_samples, None, recipe.seed)
    judge = make_judge(recipe, few, folder, device)
    features = _judged(recipe, judge, encoder.eval(), untrained, folder, tell)
    material = _gatherer(recipe, few, encoder, untrained, device).gather(
        features,
        _first_batch(recipe, split, folder, device),
        masks=_masks_of(learner),
        notes=notes,
    )
    if folder.data_errors.exists():
        say(f"Undecodable files were left out; they are listed in {folder.data_errors}")
    batches = training_batches(recipe, batch_stream(recipe, split, folder), device)
    training, remarks = loss_features(learner, batches, total_steps - 1, recipe.precision)
    examined = examine(judge, encoder, features["encoder"][0], training, remarks)
    diagnosis = _diagnosed(examined, folder, say)
    material = with_doctor(material, examined, split.train.classes)
    say(f"The report is in {write_report(folder.path, material)}")
    return diagnosis


def _masks_of(learner: nn.Module) -> tuple[MaskSampler, ...]:
    one = getattr(learner, "mask", None)
    return getattr(learner, "masks", () if one is None else (one,))


def _diagnosed(examined: Examined, folder: RunFolder, say: Say) -> Diagnosis:
    diagnosis = diagnose(examined.features, history=read_metrics(folder.metrics))
    write_json(folder.diagnosis, {**diagnosis.to_json(), "notes": list(examined.notes)})
    say(in_a_line(diagnosis))
    return diagnosis


def is_finished(recipe: Recipe, split: DataSplit, folder: RunFolder) -> bool:
    """Whether all that `finish` writes is there."""
    judged = folder.scores.is_file() or not recipe.judge or not has_labels(split)
    return judged and folder.encoder.is_dir() and folder.report.is_file()


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


def make_judge(
    recipe: Recipe, split: DataSplit, folder: RunFolder, device: torch.device, part: str = "judged"
) -> Judge:
    """The judge of a recipe's run; `part` names its samples in data_errors.jsonl."""
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
        part=part,
        probes=recipe.probes,
    )


def deployable(learner: nn.Module) -> nn.Module:
    """The encoder of a learner that is judged, saved and shipped.

    Raises:
        ValueError: the learner does not say which of its parts that is, or that part has no token grid.
    """
    encoder = getattr(learner, "deployable_encoder", None)
    if not isinstance(encoder, nn.Module) or not hasattr(encoder, "grid"):
        raise ValueError(
            f"{type(learner).__name__} has no property `deployable_encoder` that returns a network with the call of "
            "`torchjepa.types.Encoder`; give it one: what is to be judged and saved (the target encoder of a "
            "masked model)."
        )
    return encoder


def _judged(
    recipe: Recipe,
    judge: Judge,
    encoder: nn.Module,
    untrained: nn.Module,
    folder: RunFolder,
    tell: Say,
) -> Mapping[str, tuple[Features, Features]]:
    """Scores, where they are wanted and possible, and the features that the report shows."""
    judge.calibrate(untrained)
    if not recipe.judge or not has_labels(judge.split):
        tell(_unjudged(recipe, judge.split))
        return {"encoder": judge.features(encoder), "untrained": judge.features(untrained)}
    scores, features = judge.scores(encoder, untrained, tell)
    if scores:
        write_scores(folder.scores, scores)
        Console().print(score_table(scores))
    return features


def _unjudged(recipe: Recipe, split: DataSplit) -> str:
    if not recipe.judge:
        return "The encoder is not judged (--no-judge): there are no scores."
    if not len(split.train.classes):
        return "The data have no labels (no top-level folders, no label array): there are no scores."
    return "The data have fewer than two classes to tell apart on either side: there are no scores."


def _gatherer(
    recipe: Recipe, split: DataSplit, encoder: nn.Module, untrained: nn.Module, device: torch.device
) -> Gatherer:
    preprocessing = recipe.preprocessing(split.train.num_channels)
    return Gatherer(
        split=split,
        preprocessing=preprocessing,
        grid=encoder.grid(preprocessing.input_shape),  # type: ignore[operator]
        encode=encoder,
        untrained=untrained,
        device=device,
        seed=recipe.seed,
    )


def _first_batch(recipe: Recipe, split: DataSplit, folder: RunFolder, device: torch.device) -> Batch:
    """A few samples of the first step, to show what the learner sees."""
    keys = KeyedSampler(len(split.train), min(8, len(split.train)), seed=recipe.seed, total_steps=1)
    # Closed by hand: left to the garbage collector its workers may outlive it by half a minute.
    with closing(batch_stream(recipe, split, folder).batches(keys, device)) as batches:
        return next(batches)

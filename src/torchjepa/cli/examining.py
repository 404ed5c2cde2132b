"""From a learner, or an encoder alone, to the doctor's verdict: what `jepa train` and `jepa doctor` share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from torchjepa.cli.judging import Judge
from torchjepa.data import BatchStream
from torchjepa.engine import KeyedSampler
from torchjepa.evaluation import Diagnosis, Features, covariance_spectrum
from torchjepa.recipes.base import Recipe
from torchjepa.report.doctor import doctor_pictures
from torchjepa.report.material import ReportMaterial
from torchjepa.types import Batch, Grid

NUM_SAMPLES = 2048
_NUM_TOKENS, _NUM_LOSS = 256, 256
_OF_THE_LOSS = ("projector", "tokens", "target_tokens", "prediction", "target", "context", "views")


@dataclass(frozen=True)
class Examined:
    """What the doctor looks at.

    Args:
        features: by the names that `evaluation.diagnose` takes.
        pooled: the judged encoder's features of clean samples, with their labels.
        tokens: its tokens, `[b, n, d]`, of some of them.
        grid: their grid.
        notes: what a reader of the verdict should know.
    """

    features: Mapping[str, Tensor]
    pooled: Features
    tokens: Tensor
    grid: Grid
    notes: tuple[str, ...] = ()


def examine(
    judge: Judge,
    encoder: nn.Module,
    pooled: Features,
    training: Mapping[str, Tensor],
    notes: tuple[str, ...] = (),
) -> Examined:
    """The features that a diagnosis rests on.

    Args:
        judge: knows the clean samples.
        encoder: the one that is judged, on the judge's device.
        pooled: its features of clean samples.
        training: of the loss, where there is a learner: what `loss_features` gave.
        notes: what it gave to note.
    """
    grid: Grid = encoder.grid(judge.preprocessing.input_shape)  # type: ignore[operator]
    tokens = judge.tokens(encoder, _NUM_TOKENS)
    features = {"tokens": tokens, **training, "encoder": pooled.features}
    if grid.t > 1:
        features["time"] = over_time(tokens, grid)
    return Examined(features, pooled, tokens, grid, notes)


def over_time(tokens: Tensor, grid: Grid) -> Tensor:
    """What changes in a clip: the tokens of each place of each clip, one after the other, `[b * h * w, t, d]`.

    Less what all clips have there and then. The mean over a frame will not do: something that moves leaves it as it
    was, and even a fresh network's changes by 3 % of its spread only.

    Args:
        tokens: of clips, `[b, t * h * w, d]`.
        grid: theirs.
    """
    own = tokens - tokens.mean(0) + tokens.mean((0, 1))
    return own.unflatten(1, (grid.t, -1)).transpose(1, 2).flatten(0, 1)


def with_doctor(material: ReportMaterial, examined: Examined, classes: Sequence[str]) -> ReportMaterial:
    """A report's material with the doctor's pictures."""
    pictures = doctor_pictures(examined.pooled, examined.tokens, examined.grid, classes)
    projector = examined.features.get("projector")
    if projector is None or len(projector) < 2:
        return replace(material, doctor=pictures)
    spectra = {**material.spectra, "projector": covariance_spectrum(projector).numpy()}
    return replace(material, doctor=pictures, spectra=spectra)


def in_a_line(diagnosis: Diagnosis) -> str:
    """The verdict, and what the gravest finding means."""
    summary = "".join(f": {finding.summary}" for finding in diagnosis.findings[:1])
    return f"The doctor's verdict is {diagnosis.verdict.value}{summary.rstrip('.')}."


def training_batches(recipe: Recipe, stream: BatchStream, device: torch.device) -> Iterable[Batch]:
    """Some hundred augmented training samples, in batches no larger than those of the training."""
    size = min(recipe.batch_size, _NUM_LOSS)
    num = -(-_NUM_LOSS // size)
    keys = KeyedSampler(len(stream.source), size, seed=recipe.seed, total_steps=num)
    return stream.batches(keys, device)


@torch.no_grad()
def loss_features(
    learner: nn.Module, batches: Iterable[Batch], step: int, precision: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The features of a learner's loss in evaluation mode, joined over batches, and what there is to note.

    Args:
        learner: on the batches' device.
        batches: as it trains on.
        step: the last step.
        precision: as the run trained.
    """
    kind = next(learner.parameters()).device.type
    found: dict[str, list[Tensor]] = {}
    learner.eval()
    for batch in batches:
        try:
            # Around the loss alone: batches are drawn as in training.
            with torch.autocast(kind, torch.bfloat16) if precision == "bf16-mixed" else nullcontext():
                loss = learner.loss(batch, step)  # type: ignore[operator]
        except ValueError as error:  # a regularizer may need more samples than these
            return {}, (f"Encoder only, the loss cannot be looked into: {error}",)
        for name, value in loss.features.items():
            if name in _OF_THE_LOSS:
                found.setdefault(name, []).append(value.float().cpu())
    return {name: torch.cat(values) for name, values in found.items()}, ()

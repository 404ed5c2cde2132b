"""jepa eval: judge a run's encoder on a data set, probe by probe, against its baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclasses.dataclass(frozen=True)
class EvalCommand:
    """Judge a run's encoder on a data set, with kNN, a linear and an attentive probe, against its baselines.

    Nothing is trained but the probes. The scores are printed and written to RUN/eval-<data>.json; the run's own
    scores.json stays as its training left it.
    """

    run: Annotated[str, tyro.conf.Positional]
    """Run folder, runs/digits say."""
    data: str | None = None
    """Labelled images (folder or array) or videos (folder or table) that the probes are fitted on. Default: the run's
    own data."""
    test_data: str | None = None
    """What they are judged on. Default: a held-out part of --data."""
    holdout: float | None = None
    """Share of --data that is held out when there is no --test-data. Default: as in the run."""
    samples: int = 50_000
    """At most this many training images or videos are used."""
    probes: tuple[Literal["knn", "linear", "attentive"], ...] | None = None
    """Probes. Default: knn and linear, for videos attentive too."""
    clips: int = 1
    """Clips of each video, evenly spaced: their features are averaged, the attentive probe sees the tokens of all."""
    max_data_errors: float | None = None
    """Share of undecodable files above which nothing is judged. Default: as in the run."""
    num_workers: int = 0
    """Processes that load data."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    out: str | None = None
    """File for the scores. Default: RUN/eval-<name of the data>.json."""


def run(argv: Sequence[str]) -> int:
    """Run `jepa eval` with these arguments."""
    command = tyro.cli(EvalCommand, args=list(argv), prog="jepa eval")
    from rich.console import Console

    from torchjepa.cli.devices import pick_device
    from torchjepa.cli.judging import Judge, fewer, has_labels
    from torchjepa.cli.opening import open_run
    from torchjepa.evaluation import score_table, write_scores

    if command.samples < 2:
        raise ValueError(f"--samples must be at least 2, got {command.samples}.")
    opened = open_run(command.run)
    device = pick_device(command.device)
    split = opened.recipe.open_data(command.data, command.test_data, command.holdout)
    if not has_labels(split):
        raise ValueError(
            "There is nothing to judge by: the data need at least two classes (top-level folders, a label array, or "
            "a column of labels) among the training and among the test samples."
        )
    print(split.description, flush=True)
    out = _out(command)
    error_file = out.with_suffix(".data_errors.jsonl")
    error_file.unlink(missing_ok=True)
    recipe, errors = opened.recipe, command.max_data_errors
    judge = Judge(
        fewer(split, command.samples, None, recipe.seed),
        opened.encoder.preprocessing,
        opened.encoder.pool,
        device,
        errors=error_file,
        max_errors=recipe.max_data_errors if errors is None else errors,
        precision=recipe.precision,
        seed=recipe.seed,
        num_workers=command.num_workers,
        probes=recipe.probes if command.probes is None else command.probes,
        num_clips=command.clips,
    )
    untrained = opened.untrained().to(device)
    judge.calibrate(untrained)
    scores, _ = judge.scores(opened.encoder.model.to(device), untrained, print)
    Console().print(score_table(scores))
    write_scores(out, scores)
    left_out = f"; the undecodable files are listed in {error_file}" if error_file.exists() else ""
    print(f"The scores are in {out}{left_out}")
    return 0


def _out(command: EvalCommand) -> Path:
    if command.out:
        out = Path(command.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        return out
    name = "own" if command.data is None else Path(command.data).resolve().stem
    return Path(command.run) / f"eval-{name}.json"

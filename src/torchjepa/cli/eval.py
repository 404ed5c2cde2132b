"""jepa eval: judge a run's encoder on a data set, with kNN and a linear probe, against its baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True)
class EvalCommand:
    """Judge a run's encoder on a data set, with kNN and a linear probe, against its baselines.

    Nothing is trained but the probes. The scores are printed and written to RUN/eval-<data>.json; the run's own
    scores.json stays as its training left it.
    """

    run: Annotated[str, tyro.conf.Positional]
    """Run folder, runs/digits say."""
    data: str | None = None
    """Labelled images (folder or array) that the probes are fitted on. Default: the run's own data."""
    test_data: str | None = None
    """What they are judged on. Default: a held-out part of --data."""
    holdout: float = 0.1
    """Share of --data that is held out when there is no --test-data."""
    samples: int = 50_000
    """At most this many training images are used."""
    num_workers: int = 0
    """Processes that load images."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    out: str | None = None
    """File for the scores. Default: RUN/eval-<name of the data>.json."""


def run(argv: Sequence[str]) -> int:
    """Run `jepa eval` with these arguments."""
    command = tyro.cli(EvalCommand, args=list(argv), prog="jepa eval")
    from rich.console import Console

    from torchjepa.cli.judging import Judge, fewer
    from torchjepa.cli.opening import open_run, pick_device
    from torchjepa.data import open_data
    from torchjepa.evaluation import score_table, write_scores

    opened = open_run(command.run)
    recipe = opened.recipe
    own = command.data is None
    split = open_data(
        recipe.data if own else command.data,
        test_data=command.test_data or (recipe.test_data if own else None),
        holdout=recipe.holdout if own else command.holdout,
        seed=recipe.seed,
    )
    print(split.description)
    device = pick_device(command.device)
    judge = Judge(
        fewer(split, command.samples, None, recipe.seed),
        opened.encoder.preprocessing,
        opened.encoder.pool,
        device,
        max_errors=recipe.max_data_errors,
        precision=recipe.precision,
        seed=recipe.seed,
        num_workers=command.num_workers,
    )
    scores, _ = judge.scores(opened.encoder.model.to(device), opened.untrained().to(device), print)
    if not scores:
        raise ValueError("there is nothing to judge by: the data has no labels (top-level folder names).")
    name = "own" if own else Path(str(command.data)).stem
    out = Path(command.out) if command.out else Path(command.run) / f"eval-{name}.json"
    Console().print(score_table(scores))
    write_scores(out, scores)
    print(f"The scores are in {out}.")
    return 0

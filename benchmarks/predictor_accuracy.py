"""Accuracy of I-JEPA with its predictor and with the shared-context one, both trained from the same seeds.

    python -m benchmarks.predictor_accuracy --seeds 0 1 -- ijepa-tiny --data photos/train --test-data photos/test

What follows `--` is a line of `jepa train`; each seed trains it twice, without and with `--shared-context`: the same
initial weights, images, crops and masks. Runs that are finished are not trained again, and interrupted ones go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

PREDICTORS = {"predictor": [], "shared context": ["--shared-context"]}
BASELINES = ("untrained", "pixels", "majority")
PROBES = {"knn": "kNN", "linear": "linear"}

Scores = dict[str, dict[str, float]]


def main() -> None:
    options = _options()
    results = [
        {"seed": seed, "predictor": name, "scores": _scores(_train(options, seed, name, flags))}
        for seed in options.seeds
        for name, flags in PREDICTORS.items()
    ]
    Console().print(_table(results))
    if options.json is not None:
        text = json.dumps({"train": options.train, "results": results}, indent=2)
        options.json.write_text(text + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/predictor-accuracy"), help="where runs are kept"
    )
    parser.add_argument("--json", type=Path, help="file for the scores")
    parser.add_argument("train", nargs="+", help="a recipe and flags of jepa train, after --")
    return parser.parse_args()


def _train(options: argparse.Namespace, seed: int, predictor: str, flags: list[str]) -> Path:
    """The folder of a finished run."""
    name = f"{predictor.replace(' ', '-')}-{seed}"
    folder: Path = options.runs / name
    if not (folder / "scores.json").exists():
        place = ["--runs", str(options.runs), "--name", name, "--seed", str(seed)]
        place += ["--resume"] if folder.exists() else []
        subprocess.run(
            [sys.executable, "-m", "torchjepa", "train", *options.train, *flags, *place], check=True
        )
    return folder


def _scores(folder: Path) -> Scores:
    """Accuracy by probe and features."""
    scores: Scores = {}
    for each in json.loads((folder / "scores.json").read_text()):
        scores.setdefault(each["probe"], {})[each["features"]] = each["score"]
    return scores


def _table(results: list[dict]) -> Table:
    table = Table(title="Accuracy on the test samples, %")
    for column in ("features", "seed", *PROBES.values()):
        table.add_column(column, justify="left" if column == "features" else "right")
    for name in PREDICTORS:
        rows = [each for each in results if each["predictor"] == name]
        for row in rows:
            table.add_row(name, str(row["seed"]), *_cells([row["scores"]], "encoder"))
        if len(rows) > 1:
            table.add_row(name, "mean", *_cells([row["scores"] for row in rows], "encoder"))
        table.add_section()
    for name in BASELINES:
        table.add_row(name, "mean", *_cells([each["scores"] for each in results], name))
    return table


def _cells(scores: list[Scores], features: str) -> list[str]:
    return [f"{100 * mean(each[probe][features] for each in scores):.1f}" for probe in PROBES]


if __name__ == "__main__":
    main()

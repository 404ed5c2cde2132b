"""Judging an encoder: the same probes on its features and on honest baselines."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchjepa.evaluation.features import Features
from torchjepa.evaluation.knn import knn_accuracy
from torchjepa.evaluation.linear import linear_accuracy

if TYPE_CHECKING:
    from rich.table import Table

PROBES = ("knn", "linear")
BASELINES = ("untrained", "pixels", "majority")


@dataclass(frozen=True)
class Score:
    """One number of a judgement, one entry of `scores.json`.

    Args:
        probe: `knn` or `linear`.
        features: `encoder`, `untrained`, `pixels` or `majority`.
        score: accuracy on the test samples, 0 to 1.
        n_train: number of labelled training samples.
        n_test: number of labelled test samples.
    """

    probe: str
    features: str
    score: float
    n_train: int
    n_test: int


def judge(
    features: Mapping[str, tuple[Features, Features]],
    *,
    k: int = 20,
    seed: int = 0,
    tell: Callable[[str], None] = warnings.warn,
) -> list[Score]:
    """Accuracy of a kNN and a linear probe on each kind of features, and of naming the commonest label.

    Args:
        features: name (`encoder`, `untrained`, `pixels`) to the features of the training and test samples.
        k: number of neighbours; with fewer training samples all of them vote.
        seed: seed of the linear probe's held-out part.
        tell: receives a sentence for whatever a reader of the scores should know.

    Returns:
        For each probe the given features, then `majority`; nothing where there are no labels to judge with.

    Raises:
        ValueError: `features` is empty, or holds values that are not finite.
    """
    if not features:
        raise ValueError("judge: features is empty; give at least {'encoder': (train, test)}.")
    pairs = {name: (train.labelled, test.labelled) for name, (train, test) in features.items()}
    train, test = next(iter(pairs.values()))
    if not _can_judge(train, test, tell):
        return []
    if k > len(train):
        tell(f"kNN: only {len(train)} labelled training samples, so k = {len(train)} instead of {k}.")
    scores = []
    for probe in PROBES:
        for name, pair in pairs.items():
            value = _accuracy(probe, name, *pair, min(k, len(train)), seed, tell)
            scores.append(Score(probe, name, value, len(pair[0]), len(pair[1])))
        scores.append(Score(probe, "majority", _majority(train, test), len(train), len(test)))
    return scores


def best_baseline(scores: Sequence[Score], probe: str) -> Score | None:
    """The baseline that the encoder has to beat under a probe; `None` when none was judged."""
    rivals = [score for score in scores if score.probe == probe and score.features in BASELINES]
    return max(rivals, key=lambda score: score.score, default=None)


def write_scores(path: str | Path, scores: Sequence[Score]) -> None:
    """Write `scores.json`: a list of `{probe, features, score, n_train, n_test}`; whole or not at all.

    Args:
        path: the file to write.
        scores: what `judge` gave.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps([asdict(score) for score in scores], indent=2) + "\n")
    os.replace(partial, path)


def read_scores(path: str | Path) -> list[Score]:
    """Read what `write_scores` wrote.

    Args:
        path: the file to read.

    Raises:
        ValueError: the file does not hold a list of scores.
    """
    try:
        entries: Any = json.loads(Path(path).read_text())
        return [Score(**entry) for entry in entries]
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: not a list of scores ({error}); judge the run again to rewrite it."
        ) from None


def score_table(scores: Sequence[Score]) -> Table:
    """The scores as a table for the terminal: percent, and the encoder's lead over the best baseline.

    Args:
        scores: what `judge` gave.
    """
    from rich.table import Table

    probes = [probe for probe in PROBES if any(score.probe == probe for score in scores)]
    value = {(score.features, score.probe): score.score for score in scores}
    table = Table(title="Accuracy on the test samples, %")
    table.add_column("features")
    for probe in probes:
        table.add_column({"knn": "kNN"}.get(probe, probe), justify="right")
    names = list(dict.fromkeys(score.features for score in scores))
    for name in names:
        cells = [f"{100 * value[name, probe]:.1f}" if (name, probe) in value else "" for probe in probes]
        table.add_row(
            name, *cells, style="bold" if name == "encoder" else None, end_section=name == names[-1]
        )
    if "encoder" in names:
        table.add_row("encoder - best baseline", *(_lead(scores, probe) for probe in probes))
    return table


def _lead(scores: Sequence[Score], probe: str) -> str:
    rival = best_baseline(scores, probe)
    own = [score.score for score in scores if (score.probe, score.features) == (probe, "encoder")]
    return f"{100 * (own[0] - rival.score):+.1f} ({rival.features})" if rival and own else ""


def _can_judge(train: Features, test: Features, tell: Callable[[str], None]) -> bool:
    for name, part in (("training", train), ("test", test)):
        if len(part) == 0:
            tell(f"No labels among the {name} samples: the encoder is not judged, and there are no scores.")
            return False
    if len(train.labels.unique()) < 2:
        tell("All training samples carry one label: there is nothing to tell apart, and there are no scores.")
        return False
    unseen = ~(test.labels[:, None] == train.labels.unique()).any(dim=1)
    if bool(unseen.any()):
        tell(f"{int(unseen.sum())} test samples carry labels that no training sample has: counted as wrong.")
    return True


def _accuracy(
    probe: str, name: str, train: Features, test: Features, k: int, seed: int, tell: Callable[[str], None]
) -> float:
    try:
        if probe == "knn":
            return knn_accuracy(train, test, k=k)
        return linear_accuracy(train, test, seed=seed, tell=lambda text: tell(f"{name}: {text}"))
    except ValueError as error:
        raise ValueError(f"judge: features {name!r}: {error}") from error


def _majority(train: Features, test: Features) -> float:
    return (test.labels == train.labels.mode().values).double().mean().item()

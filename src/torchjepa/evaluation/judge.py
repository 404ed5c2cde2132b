"""Judging an encoder: the same probes on its features and on honest baselines."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchjepa.evaluation.attentive import AttentiveSettings, attentive_accuracy
from torchjepa.evaluation.features import Features
from torchjepa.evaluation.knn import knn_accuracy
from torchjepa.evaluation.linear import linear_accuracy
from torchjepa.evaluation.tokens import Tokens

PROBES = ("knn", "linear", "attentive")
BASELINES = ("frame", "untrained", "pixels", "majority")
_ONLY_TASK = "label"

Pair = tuple[Features, Features]
# The labels of all training and of all test samples, by their ids.
Labels = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Score:
    """One number of a judgement, one entry of `scores.json`.

    Args:
        probe: `knn`, `linear` or `attentive`.
        features: `encoder`, `frame`, `untrained`, `pixels` or `majority`.
        score: accuracy on the test samples, 0 to 1.
        n_train: number of labelled training samples.
        n_test: number of labelled test samples.
        task: what was to be told; `label` where the data have one label each.
    """

    probe: str
    features: str
    score: float
    n_train: int
    n_test: int
    task: str = _ONLY_TASK


def judge(
    features: Mapping[str, Pair],
    *,
    tokens: Mapping[str, tuple[Tokens, Tokens]] | None = None,
    tasks: Mapping[str, Labels] | None = None,
    probes: Sequence[str] = ("knn", "linear"),
    k: int = 20,
    seed: int = 0,
    device: torch.device | str = "cpu",
    tell: Callable[[str], None] = warnings.warn,
) -> list[Score]:
    """Accuracy of each probe on each kind of features, and of naming the commonest label, for each task.

    Args:
        features: name (`encoder`, `untrained`, `pixels`) to the features of the training and test samples.
        tokens: the same with the tokens, for the attentive probe; not every kind of features needs them.
        tasks: name to the labels of all training and all test samples, int64, indexed by `Features.ids`, -1 where
            there is none; by default the features' own labels are the only task, `label`.
        probes: among `knn`, `linear` and `attentive`.
        k: number of neighbours; with fewer training samples all of them vote.
        seed: seed of the held-out parts and of the attentive probe.
        device: where attentive probes are trained.
        tell: receives a sentence for whatever a reader of the scores should know.

    Returns:
        For each task and probe the given features, then `majority`; nothing for a task without labels to judge with.

    Raises:
        ValueError: `features` is empty, a probe is unknown or lacks tokens, or a value is not finite.
    """
    if not features:
        raise ValueError("judge: features is empty; give at least {'encoder': (train, test)}.")
    check_probes(probes)
    if "attentive" in probes and not tokens:
        raise ValueError("judge: the attentive probe needs tokens; give {'encoder': (train, test)}.")
    scores: list[Score] = []
    for task, labels in (tasks or {_ONLY_TASK: None}).items():
        told = tell if task == _ONLY_TASK else _named(task, tell)
        judging = _Judging(task, labels, k, seed, device, told)
        scores += judging.scores(features, tokens or {}, probes)
    return scores


def check_probes(probes: Sequence[str]) -> None:
    """Refuse names of probes that there are not, and none at all.

    Args:
        probes: names.

    Raises:
        ValueError: an unknown name, or no name.
    """
    unknown = [probe for probe in probes if probe not in PROBES]
    if unknown or not probes:
        raise ValueError(f"probes must be among {', '.join(PROBES)}, got {', '.join(unknown) or 'none'}.")


@dataclass(frozen=True)
class _Judging:
    # One task.
    task: str
    labels: Labels | None
    k: int
    seed: int
    device: torch.device | str
    tell: Callable[[str], None]

    def scores(
        self,
        features: Mapping[str, Pair],
        tokens: Mapping[str, tuple[Tokens, Tokens]],
        probes: Sequence[str],
    ) -> list[Score]:
        pairs = {name: self._labelled(pair) for name, pair in features.items()}
        train, test = next(iter(pairs.values()))
        if not _can_judge(train, test, self.tell):
            return []
        if self.k > len(train) and "knn" in probes:
            self.tell(
                f"kNN: only {len(train)} labelled training samples, so k = {len(train)} instead of {self.k}."
            )
        found = []
        for probe in sorted(set(probes), key=PROBES.index):
            for name, pair in pairs.items():
                if probe == "attentive" and name not in tokens:
                    continue
                score = self._accuracy(probe, name, pair, tokens)
                found.append(Score(probe, name, score, len(pair[0]), len(pair[1]), self.task))
            most = _majority(train, test)
            found.append(Score(probe, "majority", most, len(train), len(test), self.task))
        return found

    def _labelled(self, pair: Pair) -> Pair:
        train, test = (self._relabelled(part, side) for side, part in enumerate(pair))
        return train.labelled, test.labelled

    def _relabelled(self, part: Any, side: int) -> Any:
        return part if self.labels is None else replace(part, labels=self.labels[side][part.ids])

    def _accuracy(
        self, probe: str, name: str, pair: Pair, tokens: Mapping[str, tuple[Tokens, Tokens]]
    ) -> float:
        try:
            if probe == "knn":
                return knn_accuracy(*pair, k=min(self.k, len(pair[0])))
            if probe == "linear":
                return linear_accuracy(*pair, seed=self.seed, tell=lambda text: self.tell(f"{name}: {text}"))
            train, test = (self._relabelled(part, side) for side, part in enumerate(tokens[name]))
            settings = AttentiveSettings(seed=self.seed, device=self.device)
            return attentive_accuracy(train, test, settings).accuracy
        except ValueError as error:
            raise ValueError(f"judge: features {name!r}: {error}") from error


def tasks_in(scores: Sequence[Score]) -> tuple[str, ...]:
    """The tasks that were judged, in order."""
    return tuple(dict.fromkeys(score.task for score in scores))


def best_baseline(scores: Sequence[Score], probe: str, task: str | None = None) -> Score | None:
    """The baseline that the encoder has to beat under a probe; `None` when none was judged.

    Args:
        scores: what `judge` gave.
        probe: `knn`, `linear` or `attentive`.
        task: one of theirs; by default the first.
    """
    wanted = next(iter(tasks_in(scores)), None) if task is None else task
    rivals = [s for s in scores if (s.probe, s.task) == (probe, wanted) and s.features in BASELINES]
    return max(rivals, key=lambda score: score.score, default=None)


def write_scores(path: str | Path, scores: Sequence[Score]) -> None:
    """Write `scores.json`: a list of `{probe, features, score, n_train, n_test, task}`; whole or not at all.

    Args:
        path: the file to write.
        scores: what `judge` gave.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps([asdict(score) for score in scores], indent=2) + "\n")
    os.replace(partial, path)


def read_scores(path: str | Path) -> list[Score]:
    """Read what `write_scores` wrote; entries from before there were tasks are of the task `label`.

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


def _named(task: str, tell: Callable[[str], None]) -> Callable[[str], None]:
    return lambda text: tell(f"Task {task}: {text}")


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


def _majority(train: Features, test: Features) -> float:
    return (test.labels == train.labels.mode().values).double().mean().item()

"""Judging: scores as scores.json has them, baselines, what is said where a label is missing."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console

from tests.evaluation.test_knn import blobs
from torchjepa.evaluation import (
    Features,
    Score,
    best_baseline,
    judge,
    knn_accuracy,
    linear_accuracy,
    read_scores,
    score_table,
    write_scores,
)


def kinds() -> dict[str, tuple[Features, Features]]:
    good = blobs(200, noise=0.8), blobs(100, seed=1, noise=0.8)
    generator = torch.Generator().manual_seed(5)
    poor = tuple(
        Features(
            part.features + 4 * torch.randn(part.features.shape, generator=generator), part.labels, part.ids
        )
        for part in good
    )
    return {"encoder": good, "untrained": poor, "pixels": poor}  # type: ignore[dict-item]


def relabelled(part: Features, labels: torch.Tensor) -> Features:
    return Features(part.features, labels, part.ids)


def test_scores_are_those_of_the_probes_and_the_majority():
    features = kinds()
    scores = judge(features)
    assert [(score.probe, score.features) for score in scores] == [
        (probe, name)
        for probe in ("knn", "linear")
        for name in ("encoder", "untrained", "pixels", "majority")
    ]
    assert {(score.n_train, score.n_test) for score in scores} == {(200, 100)}
    value = {(score.probe, score.features): score.score for score in scores}
    assert value["knn", "encoder"] == knn_accuracy(*features["encoder"])
    assert value["linear", "untrained"] == linear_accuracy(*features["untrained"])
    train, test = features["encoder"]
    commonest = max(range(4), key=lambda label: int((train.labels == label).sum()))
    assert value["knn", "majority"] == pytest.approx((test.labels == commonest).double().mean().item())
    assert value["knn", "encoder"] > value["knn", "untrained"] + 0.1


def test_scores_json_has_the_agreed_form(tmp_path):
    scores = judge(kinds())
    path = tmp_path / "scores.json"
    write_scores(path, scores)
    entries = json.loads(path.read_text())
    assert isinstance(entries, list)
    for entry in entries:
        assert set(entry) == {"probe", "features", "score", "n_train", "n_test", "task"}
        assert entry["probe"] in ("knn", "linear")
        assert entry["features"] in ("encoder", "untrained", "pixels", "majority")
        assert 0 <= entry["score"] <= 1
        assert isinstance(entry["n_train"], int)
    assert read_scores(path) == scores
    assert list(tmp_path.iterdir()) == [path]
    path.write_text('[{"probe": "knn"}]')
    with pytest.raises(ValueError, match=r"not a list of scores .*judge the run again"):
        read_scores(path)


def test_without_labels_there_are_no_scores_and_it_is_said():
    train, test = kinds()["encoder"]
    blank = relabelled(train, torch.full((200,), -1))
    told: list[str] = []
    assert judge({"encoder": (blank, test)}, tell=told.append) == []
    assert told == [
        "No labels among the training samples: the encoder is not judged, and there are no scores."
    ]
    told.clear()
    assert judge({"encoder": (train, relabelled(test, torch.full((100,), -1)))}, tell=told.append) == []
    assert "No labels among the test samples" in told[0]
    told.clear()
    assert judge({"encoder": (relabelled(train, torch.zeros(200).long()), test)}, tell=told.append) == []
    assert "one label" in told[0]
    with pytest.warns(UserWarning, match="No labels"):
        judge({"encoder": (blank, test)})


def test_few_samples_and_unseen_labels_are_said():
    train, test = kinds()["encoder"]
    told: list[str] = []
    scores = judge({"encoder": (train[:12], test)}, tell=told.append)
    assert scores[0].n_train == 12
    assert "only 12 labelled training samples, so k = 12 instead of 20" in told[0]
    labels = test.labels.clone()
    labels[:7] = 9
    told.clear()
    judge({"encoder": (train, relabelled(test, labels))}, tell=told.append)
    assert told == ["7 test samples carry labels that no training sample has: counted as wrong."]


def test_broken_features_are_named():
    features = kinds()
    features["untrained"][0].features[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"features 'untrained': .*1 of 3200 values .*NaN"):
        judge(features)
    with pytest.raises(ValueError, match="features is empty"):
        judge({})


def test_the_table_shows_percent_and_the_lead():
    scores = [
        Score("knn", "encoder", 0.8512, 10, 20),
        Score("knn", "untrained", 0.5, 10, 20),
        Score("knn", "pixels", 0.542, 10, 20),
        Score("knn", "majority", 0.1, 10, 20),
    ]
    assert best_baseline(scores, "knn") == scores[2]
    assert best_baseline(scores, "linear") is None
    console = Console(file=io.StringIO(), width=100)
    console.print(score_table(scores))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "85.1" in text
    assert "10.0" in text
    assert "+30.9 (pixels)" in text
    assert "linear" not in text

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
    Tokens,
    attentive_accuracy,
    best_baseline,
    judge,
    knn_accuracy,
    linear_accuracy,
    read_scores,
    score_table,
    tasks_in,
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
    path.write_text('[{"probe": "knn", "features": "encoder", "score": 0.5, "n_train": 4, "n_test": 2}]')
    assert read_scores(path) == [
        Score("knn", "encoder", 0.5, 4, 2, task="label")
    ]  # from before there were tasks
    path.write_text('[{"probe": "knn"}]')
    with pytest.raises(ValueError, match=r"not a list of scores .*judge the run again"):
        read_scores(path)


def test_each_task_is_judged_by_its_own_labels() -> None:
    train, test = (part[torch.arange(len(part)).flip(0)] for part in kinds()["encoder"])
    # Labels stand by id, whatever the order of the rows; the second task is the first, coarser and with gaps.
    by_id = [torch.empty(len(part), dtype=torch.int64) for part in (train, test)]
    for labels, part in zip(by_id, (train, test)):
        labels[part.ids] = part.labels
    coarse = tuple(torch.where(labels == 3, -1, labels // 2) for labels in by_id)
    blank = tuple(torch.full_like(labels, -1) for labels in by_id)
    told: list[str] = []
    scores = judge(
        {"encoder": (relabelled(train, train.labels * 0), test)},
        tasks={"fine": tuple(by_id), "coarse": coarse, "none": blank},  # type: ignore[dict-item]
        tell=told.append,
    )
    assert tasks_in(scores) == ("fine", "coarse")
    value = {(s.task, s.probe): s.score for s in scores if s.features == "encoder"}
    assert value["fine", "knn"] == knn_accuracy(train, test)
    pair = [relabelled(part, labels[part.ids]) for part, labels in zip((train, test), coarse)]
    assert value["coarse", "linear"] == linear_accuracy(*pair)
    assert {s.n_test for s in scores if s.task == "coarse"} == {int((test.labels < 3).sum())}
    assert told == [
        "Task none: No labels among the training samples: the encoder is not judged, and there are no scores."
    ]


def test_the_attentive_probe_is_judged_where_there_are_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchjepa.evaluation.attentive._LEAST_UPDATES", 1)
    features = kinds()
    tokens = {
        "encoder": tuple(
            Tokens(part.features.view(len(part), 2, 8), torch.full((len(part),), -1), part.ids)
            for part in features["encoder"]
        )
    }
    labels = tuple(part.labels for part in features["encoder"])
    scores = judge(features, tokens=tokens, tasks={"label": labels}, probes=("attentive", "knn"))  # type: ignore[arg-type]
    assert [(s.probe, s.features) for s in scores[4:]] == [
        ("attentive", "encoder"),
        ("attentive", "majority"),
    ]
    pair = [Tokens(part.tokens, own, part.ids) for part, own in zip(tokens["encoder"], labels)]
    assert scores[4].score == attentive_accuracy(*pair).accuracy > 0.7
    with pytest.raises(ValueError, match="the attentive probe needs tokens"):
        judge(features, probes=("attentive",))
    with pytest.raises(ValueError, match=r"probes must be among knn, linear, attentive, got lineal\."):
        judge(features, probes=("lineal",))


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


def test_the_table_of_several_tasks_fits_in_80_columns() -> None:
    names = ("encoder", "frame", "untrained", "pixels", "majority")
    scores = [
        Score(probe, name, 0.1 * row + 0.01 * column, 100, 1000, task)
        for task in ("digit", "direction")
        for row, probe in enumerate(("knn", "linear", "attentive"))
        for column, name in enumerate(names)
        if (probe, name) != ("attentive", "pixels")
    ]
    assert best_baseline(scores, "knn", "direction") == scores[18]
    assert best_baseline(scores, "knn") == scores[4]
    console = Console(file=io.StringIO(), width=80)
    console.print(score_table(scores))
    lines = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert ["task", "probe", *names, "lead"] in lines
    assert ["digit", "kNN", "0.0", "1.0", "2.0", "3.0", "4.0", "-4.0"] in lines
    assert ["attentive", "20.0", "21.0", "22.0", "24.0", "-4.0"] in lines
    assert ["direction", "kNN", "0.0", "1.0", "2.0", "3.0", "4.0", "-4.0"] in lines

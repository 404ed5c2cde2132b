"""The verdict: better, worse or not to be told apart, by how much and against what."""

from __future__ import annotations

import pytest

from tests.report.material import SCORES
from torchjepa.evaluation import Score
from torchjepa.report.verdict import score_rows, write_verdict


def knn(encoder: float, pixels: float, n: int = 1000) -> list[Score]:
    return [Score("knn", "encoder", encoder, 10, n), Score("knn", "pixels", pixels, 10, n)]


@pytest.mark.parametrize(
    ("encoder", "pixels", "n", "tone", "words"),
    [
        (0.8, 0.5, 1000, "good", "kNN: 80.0 %, 30.0 points above the best baseline (raw pixels) at 50.0 %."),
        (0.4, 0.5, 1000, "bad", "kNN: 40.0 %, 10.0 points below the best baseline (raw pixels) at 50.0 %."),
        (0.52, 0.5, 1000, "open", "no different from the best baseline (raw pixels) at 50.0 %"),
        # 2 sqrt(0.52 * 0.48 / n + 0.25 / n) = 0.0200 at n = 4998
        (0.52, 0.5, 4900, "open", "beyond sampling noise"),
        (0.52, 0.5, 5100, "good", "2.0 points above"),
    ],
)
def test_a_lead_counts_beyond_two_standard_errors(encoder, pixels, n, tone, words):
    verdict = write_verdict(knn(encoder, pixels, n))
    assert verdict.tone == tone
    assert words in verdict.text


def test_all_probes_have_to_agree():
    mixed = [
        *knn(0.8, 0.5),
        Score("linear", "encoder", 0.3, 10, 1000),
        Score("linear", "pixels", 0.5, 10, 1000),
    ]
    assert write_verdict(mixed).tone == "open"
    assert write_verdict(SCORES).tone == "good"
    assert (
        "Linear probe: 93.0 %, 22.0 points above the best baseline (raw pixels)" in write_verdict(SCORES).text
    )


def test_without_scores_nothing_is_claimed():
    assert write_verdict([]).tone == "open"
    assert write_verdict([Score("knn", "encoder", 0.9, 10, 10)]).text == "The encoder was not judged."
    assert score_rows([]) is None


def test_the_table_has_a_row_for_each_kind_and_a_lead_for_each_probe():
    table = score_rows(SCORES)
    assert table is not None
    (group,) = table["groups"]
    assert [row["name"] for row in group["rows"]] == [
        "Encoder",
        "Untrained encoder",
        "Raw pixels",
        "Most frequent label",
    ]
    assert [cell["text"] for cell in group["lead"]] == ["+31.1", "+22.0"]
    below = score_rows(knn(0.4, 0.5))
    assert below is not None
    assert below["groups"][0]["lead"][0]["text"] == "\N{MINUS SIGN}10.0"


def of_task(task: str, encoder: tuple[float, float], frame: float, n_test: int = 1000) -> list[Score]:
    return [
        Score(probe, features, score, 2000, n_test, task)
        for probe, ours in zip(("knn", "attentive"), encoder)
        for features, score in (("encoder", ours), ("frame", frame), ("majority", 0.1))
    ]


def test_of_several_tasks_each_has_a_line_and_its_own_baseline():
    scores = [*of_task("digit", (0.5, 0.9), 0.8), *of_task("which_way", (0.6, 0.7), 0.2)]
    verdict = write_verdict(scores)
    assert verdict.text.split("\n") == [
        "Digit, attentive probe: 90.0 %, 10.0 points above the best baseline (single frame) at 80.0 %.",
        "Which way, attentive probe: 70.0 %, 50.0 points above the best baseline (single frame) at 20.0 %.",
        "Other probes find less: digit by kNN.",
    ]
    assert verdict.tone == "open"
    better = write_verdict([*of_task("digit", (0.85, 0.9), 0.8), *of_task("speed", (0.6, 0.7), 0.2)])
    assert (len(better.text.split("\n")), better.tone) == (2, "good")
    assert write_verdict([*of_task("a", (0.1, 0.1), 0.8), *of_task("b", (0.1, 0.1), 0.8)]).tone == "bad"


def test_of_several_tasks_each_has_a_group_of_rows():
    table = score_rows([*of_task("digit", (0.5, 0.9), 0.8), *of_task("speed", (0.6, 0.7), 0.2)])
    assert table is not None
    assert table["probes"] == ["kNN, %", "Attentive probe, %"]
    assert [(group["name"], group["note"]) for group in table["groups"]] == [("Digit", ""), ("Speed", "")]
    assert [[row["name"] for row in group["rows"]] for group in table["groups"]] == [
        ["Encoder", "Single frame", "Most frequent label"]
    ] * 2
    assert [[cell["text"] for cell in group["lead"]] for group in table["groups"]] == [
        ["\N{MINUS SIGN}30.0", "+10.0"],
        ["+40.0", "+50.0"],
    ]
    assert table["caption"].startswith("Share of 1,000 test samples")
    assert "Single frame: the trained encoder" in table["caption"]
    assert "Linear probe" not in table["caption"]


def test_tasks_with_other_counts_name_theirs():
    table = score_rows([*of_task("digit", (0.5, 0.9), 0.8), *of_task("speed", (0.6, 0.7), 0.2, n_test=900)])
    assert table is not None
    assert [group["note"] for group in table["groups"]] == [
        "2,000 training and 1,000 test samples",
        "2,000 training and 900 test samples",
    ]
    assert table["caption"].startswith("Share of the test samples")

"""The doctor's verdict on feature sets that are healthy, or broken in a known way, by construction."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import layer_norm

from tests.evaluation.doctor.sets import history, power_law, randn, relu_pooled, tokens
from torchjepa.evaluation import Thresholds, Verdict, diagnose

LIE = randn(1, 64) + 1e-4 * randn(512, 64, seed=1)
TARGET = randn(256, 32, seed=1)
CONTEXT = TARGET + 0.5 * randn(256, 32, seed=2)

HEALTHY = {
    "Gaussian": randn(256, 64),
    "Gaussian of few dimensions": randn(40, 4),
    "Gaussian in more dimensions than samples": randn(300, 1024),
    "power law of exponent 1": power_law(1024, 256),
    "power law of exponent 1.5": power_law(1024, 256, alpha=1.5),
    "layer-normalised": layer_norm(power_law(512, 192) * 3 + randn(1, 192), (192,)),
    "rectified, with a large mean": relu_pooled(),
    "sparse": (randn(512, 64) - 1).relu(),
    "a few dead dimensions": torch.cat([randn(256, 56), torch.zeros(256, 8)], dim=1),
    "tokens": tokens(),
    "tokens with strong positions": tokens(place=3),
    "tokens of like samples": tokens(sample=0.2),
    "views": {"encoder": randn(256, 32), "views": randn(64, 1, 32) + 0.1 * randn(64, 4, 32, seed=1)},
    "predictor": {
        "encoder": randn(256, 32),
        "prediction": TARGET + 0.3,
        "target": TARGET,
        "context": CONTEXT,
    },
    "time": {"time": tokens(k=8, rest=0.5)},
}
BROKEN = {
    "constant": (torch.full((256, 64), 0.3), Verdict.COMPLETE_COLLAPSE),
    "zero": (torch.zeros(256, 64), Verdict.COMPLETE_COLLAPSE),
    "constant and noise, which has the highest rank": (LIE, Verdict.COMPLETE_COLLAPSE),
    "constant of few samples": (torch.ones(5, 256), Verdict.COMPLETE_COLLAPSE),
    "tokens that tell the position alone": (tokens(sample=1e-3, rest=1e-3), Verdict.COMPLETE_COLLAPSE),
    "projector alone": ({"encoder": randn(256, 64), "projector": LIE}, Verdict.COMPLETE_COLLAPSE),
    "rank 1": (randn(256, 1) @ randn(1, 64, seed=1), Verdict.DIMENSIONAL_COLLAPSE),
    "rank 1 and rectified": (randn(256, 1).abs() @ randn(1, 64, seed=1).abs(), Verdict.DIMENSIONAL_COLLAPSE),
    "rank 5 of 64": (randn(256, 5) @ randn(5, 64, seed=1), Verdict.DIMENSIONAL_COLLAPSE),
    "rank 2 and noise": (
        randn(512, 2) @ randn(2, 128, seed=1) + 0.02 * randn(512, 128, seed=2),
        Verdict.DIMENSIONAL_COLLAPSE,
    ),
    "most dimensions dead": (
        torch.cat([randn(256, 10), 1e-5 * randn(256, 54)], dim=1),
        Verdict.DIMENSIONAL_COLLAPSE,
    ),
    "projector of 2": ({"encoder": randn(256, 64), "projector": randn(256, 2)}, Verdict.DIMENSIONAL_COLLAPSE),
    "tokens alike": (tokens(place=0, rest=0.01), Verdict.TOKEN_COLLAPSE),
    "tokens alike but for positions": (tokens(place=2, rest=0.01), Verdict.TOKEN_COLLAPSE),
    "tokens of the target network alike": (
        {"encoder": randn(256, 32), "target_tokens": tokens(rest=0.01)},
        Verdict.TOKEN_COLLAPSE,
    ),
    "frames alike": ({"time": tokens(k=8, place=0.5, rest=0.01)}, Verdict.TEMPORAL_COLLAPSE),
    "prediction is the context": (
        {"encoder": randn(256, 32), "prediction": CONTEXT + 1e-3, "target": TARGET, "context": CONTEXT},
        Verdict.PREDICTOR_COPIES,
    ),
    "prediction is the mean": (
        {"encoder": randn(256, 32), "prediction": TARGET.mean(0).expand(256, 32), "target": TARGET},
        Verdict.PREDICTOR_COPIES,
    ),
    "target of another scale": (
        {"encoder": randn(256, 32), "tokens": tokens(), "target_tokens": 20 * tokens()},
        Verdict.TARGET_DRIFT,
    ),
    "prediction of targets that moved on": (
        {"encoder": randn(256, 32), "prediction": TARGET + randn(256, 32, seed=9) * 1.3, "target": TARGET},
        Verdict.TARGET_DRIFT,
    ),
    "few samples": (randn(5, 256), Verdict.TOO_FEW_SAMPLES),
    "fewer than a quarter of the dimensions": (randn(60, 512), Verdict.TOO_FEW_SAMPLES),
    "one sample": (randn(1, 16), Verdict.TOO_FEW_SAMPLES),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_sets_are_called_healthy(name):
    diagnosis = diagnose(HEALTHY[name])
    assert diagnosis.verdict == Verdict.HEALTHY, diagnosis.text()
    assert diagnosis.findings == ()
    assert diagnosis.exit_code == 0


@pytest.mark.parametrize("name", BROKEN)
def test_broken_sets_are_named(name):
    features, verdict = BROKEN[name]
    diagnosis = diagnose(features)
    assert diagnosis.verdict == verdict, diagnosis.text()
    assert diagnosis.exit_code == (2 if verdict == Verdict.TOO_FEW_SAMPLES else 1)
    finding = diagnosis.findings[0]
    assert finding.evidence
    assert finding.advice
    for each in finding.evidence:
        assert diagnosis.figures[each.figure] == each.value


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_a_finding_and_no_crash(value):
    x = randn(256, 16)
    x[:64, 3] = value
    diagnosis = diagnose({"encoder": x, "prediction": x, "target": x})
    assert diagnosis.verdict == Verdict.COMPLETE_COLLAPSE
    assert "NaN or infinite" in diagnosis.text()
    assert diagnosis.figures["encoder/non_finite_share"] == pytest.approx(64 / 4096)
    assert diagnosis.num_samples == 192  # the rest is measured
    assert diagnose(torch.full((9, 4), value)).verdict == Verdict.COMPLETE_COLLAPSE


def test_several_findings_stand_with_the_gravest_first():
    diagnosis = diagnose(
        {"tokens": tokens(rest=0.01), "prediction": CONTEXT, "context": CONTEXT, "target": TARGET}
    )
    verdicts = [finding.verdict for finding in diagnosis.findings]
    assert verdicts == [Verdict.TOKEN_COLLAPSE, Verdict.PREDICTOR_COPIES]


def test_a_fresh_network_is_warming_up_and_not_collapsed():
    nearly_alike = randn(1, 64) + 0.02 * randn(256, 64, seed=1)
    for rows in (history(1), history(400, warmup=500)):
        diagnosis = diagnose(nearly_alike, history=rows)
        assert diagnosis.verdict == Verdict.WARMING_UP, diagnosis.text()
        assert diagnosis.exit_code == 2
    assert diagnose(nearly_alike, history=history(400)).verdict == Verdict.COMPLETE_COLLAPSE
    # What cannot come back is said at once.
    assert diagnose(torch.ones(256, 64), history=history(1)).verdict == Verdict.COMPLETE_COLLAPSE


def test_the_history_tells_what_one_look_cannot():
    x = randn(256, 64)
    assert diagnose(x, history=history(health_std=0.4, loss=0.5)).verdict == Verdict.HEALTHY
    assert diagnose(x, history=history(health_std=1e-3)).verdict == Verdict.COMPLETE_COLLAPSE
    assert diagnose(x, history=history(health_target_std=100.0, loss=9.0)).verdict == Verdict.TARGET_DRIFT
    gaps = [*history(health_std=0.4), {"step": 400, "health/std": None, "loss": math.nan, "note": None}]
    assert diagnose(x, history=gaps).verdict == Verdict.HEALTHY


def test_json_has_no_nan_and_text_is_plain():
    diagnosis = diagnose(np.ones((64, 8), dtype=np.float16))
    plain = json.loads(json.dumps(diagnosis.to_json(), allow_nan=False))
    assert plain["verdict"] == "complete collapse"
    assert plain["exit_code"] == 1
    assert plain["figures"]["encoder/alpha"] is None
    assert set(plain["findings"][0]) == {"verdict", "summary", "evidence", "advice"}
    text = diagnose(LIE).text()
    assert "expected at least 0.06" in text
    assert "momentum towards 0.996" in text
    assert "they use 63.5 of 64 attainable directions" in diagnose(randn(1024, 64)).text()


def test_many_samples_are_thinned_and_arrays_of_any_kind_taken():
    x = randn(5000, 8)
    diagnosis = diagnose(x)
    assert diagnosis.num_samples == 2048
    assert diagnose(x.numpy()).figures == diagnosis.figures
    assert diagnose({"encoder": x}).figures == diagnosis.figures
    assert diagnose(x.bfloat16()).verdict == Verdict.HEALTHY
    assert diagnose((100 * x).int()).verdict == Verdict.HEALTHY


def test_thresholds_can_be_moved():
    assert (
        diagnose(randn(256, 64), thresholds=Thresholds(rank_share=0.99)).verdict
        == Verdict.DIMENSIONAL_COLLAPSE
    )


@settings(max_examples=20, deadline=None)
@given(
    scale=st.floats(1e-8, 1e8),
    seed=st.integers(0, 99),
    name=st.sampled_from(["Gaussian", "layer-normalised"]),
)
def test_scaling_and_rotating_do_not_make_the_healthy_sick(scale, seed, name):
    x = HEALTHY[name].double()
    basis, _ = torch.linalg.qr(randn(x.shape[1], x.shape[1], seed=seed).double())
    assert diagnose(scale * x @ basis).verdict == Verdict.HEALTHY


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"encodr": randn(4, 2)}, r"unknown feature 'encodr'. Did you mean 'encoder'\?"),
        ({"encoder": randn(4, 2, 2)}, r"encoder must be \[n, d\] and not empty, got \(4, 2, 2\)"),
        ({"tokens": randn(4, 2)}, r"tokens must be \[b, k, d\] and not empty, got \(4, 2\)"),
        (randn(0, 3), r"encoder must be \[n, d\] and not empty, got \(0, 3\)"),
        ({}, "there are no features"),
        (torch.zeros(3, 2, dtype=torch.complex64), "must hold real numbers, got torch.complex64"),
        ({"encoder": np.array(["a"])}, "encoder is not an array of real numbers"),
    ],
)
def test_refusals_say_what_is_wrong(features, message):
    with pytest.raises(ValueError, match=message):
        diagnose(features)

"""The masked runs and the runs on clips."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.doctor_zoo.case import COMPLETE, COPIES, DIMENSIONAL, DRIFT, HEALTHY, TEMPORAL, Case
from benchmarks.doctor_zoo.masked import SHORT, Masked, MeanOfContext, WithHead, stem_vit
from benchmarks.doctor_zoo.proofs import (
    Judge,
    alike,
    apart,
    both,
    constant,
    copies,
    learned,
    narrow,
    unlearned,
)
from benchmarks.doctor_zoo.training import Training
from benchmarks.doctor_zoo.video import Video
from torchjepa.collapse import SIGReg, VCReg, VICReg
from torchjepa.ema import EMA
from torchjepa.models import LayerNormTargets


def _masked(name: str, expected: str, how: str, proof: Judge, **changes: Any) -> Case:
    return Case(name, expected, how, Masked(**changes), proof, trained=True)


def _video(name: str, expected: str, how: str, proof: Judge, regularizer: Any, **changes: Any) -> Case:
    return Case(name, expected, how, Video(regularizer=regularizer, **changes), proof, trained=True)


def _with_head(seed: int) -> WithHead:
    return WithHead(stem_vit(seed=seed))


_V: dict[str, Any] = {
    "regularizer": VICReg(lambda_inv=1.0, mu_var=1.0, nu_cov=0.04),
    "projector": (128, 128),
    "num_mask_draws": 2,
    "training": replace(SHORT, steps=400, batch_size=128),
}
_RUNAWAY = {"ema": EMA(1.0), "target_norm": None, "encoder": _with_head}
_STEADY = Training(steps=250, batch_size=96, lr=1e-2, weight_decay=0.0, final=1e-2)
_LONG = Training(steps=600, batch_size=64)
_MASKED = [
    _masked("ijepa-vicreg", HEALTHY, "I-JEPA with VICReg between two glimpses", learned, **_V),
    _masked(
        "ijepa-vicreg-2",
        HEALTHY,
        "the same with another seed",
        learned,
        **{**_V, "training": replace(_V["training"], seed=1)},
    ),
    _masked(
        "ijepa-no-ema", COMPLETE, "I-JEPA, one shared encoder, no regularizer", constant("encoder"), ema=None
    ),
    _masked(
        "ijepa-no-ema-layernorm",
        COMPLETE,
        "I-JEPA, one shared encoder, LayerNormed targets",
        constant("encoder"),
        ema=None,
        target_norm=LayerNormTargets(),
        training=replace(SHORT, seed=1),
    ),
    _masked(
        "ijepa-no-ema-raw",
        COMPLETE,
        "I-JEPA, one shared encoder, targets as they are",
        constant("encoder"),
        ema=None,
        target_norm=None,
    ),
    _masked(
        "ijepa-momentum-0",
        DIMENSIONAL,
        "I-JEPA, momentum 0",
        both(narrow("encoder"), unlearned),
        ema=EMA(0.0),
        training=replace(SHORT, seed=1),
    ),
    _masked(
        "ijepa-mean-predictor",
        HEALTHY,
        "I-JEPA with VICReg, a predictor that answers with the context's mean",
        learned,
        **_V,
        predictor=MeanOfContext,
    ),
    _masked(
        "targets-run-away",
        DRIFT,
        "targets not normalised and momentum 1, while VCReg with gamma 1,000 drives the encoder's scale up",
        apart(),
        **_RUNAWAY,
        regularizer=VCReg(gamma=1e3, nu_cov=1e-3),
        training=replace(_STEADY, seed=1),
    ),
    _masked(
        "targets-run-away-vicreg",
        DRIFT,
        "the same with VICReg",
        apart(),
        **_RUNAWAY,
        regularizer=VICReg(lambda_inv=1.0, gamma=1e3, nu_cov=1e-3),
        num_mask_draws=2,
        training=_STEADY,
    ),
]
_VIDEO = [
    _video(
        "clips-vcreg",
        HEALTHY,
        "clips, VCReg over batch and time, a free predictor",
        learned,
        VCReg(over="both"),
        stillness=10.0,
    ),
    _video(
        "clips-sigreg",
        HEALTHY,
        "clips, SIGReg over the batch, a free predictor",
        learned,
        SIGReg(),
        stillness=10.0,
        training=Training(steps=500, batch_size=48, seed=1),
    ),
    _video(
        "frozen-frames",
        TEMPORAL,
        "clips whose frames are frozen",
        alike("time"),
        VCReg(),
        stillness=1.0,
        moving=False,
    ),
    _video(
        "still-features",
        TEMPORAL,
        "clips, invariance over time far too strong",
        alike("time"),
        VCReg(),
        stillness=100.0,
        training=_LONG,
    ),
    _video(
        "clips-still-sigreg",
        TEMPORAL,
        "the same with SIGReg",
        alike("time"),
        SIGReg(),
        stillness=100.0,
        training=_LONG,
    ),
    _video(
        "skip-copies",
        COPIES,
        "clips, the predictor has a skip and hardly more",
        copies(),
        VCReg(over="both"),
        stillness=10.0,
        skip=0.01,
    ),
    _video("skip-sigreg", COPIES, "the same with SIGReg", copies(), SIGReg(), stillness=5.0, skip=0.01),
]
CASES = [*_MASKED, *_VIDEO]

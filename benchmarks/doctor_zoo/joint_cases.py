"""The joint-embedding runs of the zoo."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.doctor_zoo.case import COMPLETE, DIMENSIONAL, HEALTHY, TOKEN, WARMING_UP, Case
from benchmarks.doctor_zoo.joint import AlikeTokens, Joint, RandomToken, conv, vit
from benchmarks.doctor_zoo.proofs import (
    Judge,
    alike,
    both,
    constant,
    early,
    learned,
    narrow,
    unlearned,
    vanished,
)
from benchmarks.doctor_zoo.training import Training
from torchjepa.collapse import WMSE, BarlowTwins, LeJEPA, VICReg
from torchjepa.nn.pooling import MeanMaxPool


def _case(name: str, expected: str, how: str, proof: Judge, regularizer: Any, **changes: Any) -> Case:
    steps = 250 if changes.get("encoder") is vit else 400
    training = replace(Training(steps=steps), **changes.pop("training", {}))
    run = Joint(regularizer=regularizer, training=training, **changes)
    return Case(name, expected, how, run, proof, trained=True)


def _alike_vit(seed: int) -> AlikeTokens:
    return AlikeTokens(vit(seed=seed))


def _alike_conv(seed: int) -> AlikeTokens:
    return AlikeTokens(conv(seed=seed), 0.1)


_V = VICReg()
_ALONE = VICReg(mu_var=0.0, nu_cov=0.0)
_GONE = both(vanished(), unlearned)
_HEALTHY = [
    _case("vicreg-conv", HEALTHY, "VICReg, convolutions", learned, _V),
    _case("vicreg-vit", HEALTHY, "VICReg, ViT", learned, _V, encoder=vit),
    _case("barlow-conv", HEALTHY, "Barlow Twins", learned, BarlowTwins(), training={"seed": 1}),
    _case("lejepa-conv", HEALTHY, "LeJEPA", learned, LeJEPA()),
    _case(
        "vicreg-batch-24",
        HEALTHY,
        "VICReg, batches of 24",
        learned,
        _V,
        training={"batch_size": 24, "lr": 1e-3},
    ),
    _case(
        "vicreg-wide-projector", HEALTHY, "VICReg, projector 1,024 wide", learned, _V, projector=(1024, 1024)
    ),
    _case(
        "vicreg-mean-max",
        HEALTHY,
        "VICReg, ReLU features with a big mean (maximum pooled)",
        learned,
        _V,
        pool=MeanMaxPool(),
    ),
    _case("lejepa-vit", HEALTHY, "LeJEPA, ViT", learned, LeJEPA(), encoder=vit),
    _case("barlow-vit", HEALTHY, "Barlow Twins, ViT", learned, BarlowTwins(), encoder=vit),
    _case("wmse", HEALTHY, "W-MSE", learned, WMSE(), projector=(128, 32)),
    _case(
        "weight-decay-10-conv",
        HEALTHY,
        "VICReg, weight decay 10: batch norm does not mind",
        learned,
        _V,
        training={"weight_decay": 10.0},
    ),
    _case(
        "lr-100x-conv",
        HEALTHY,
        "VICReg, learning rate 0.3: batch norm does not mind",
        learned,
        _V,
        training={"lr": 0.3},
    ),
    _case(
        "weight-decay-10-vit",
        HEALTHY,
        "VICReg, ViT, weight decay 10: small but learning",
        learned,
        _V,
        encoder=vit,
        training={"weight_decay": 10.0},
    ),
    _case(
        "vicreg-wide-encoder",
        HEALTHY,
        "VICReg, convolutions twice as wide",
        learned,
        _V,
        encoder=partial(conv, widths=(32, 64, 128)),
    ),
]
_COMPLETE = [
    _case("invariance-conv", COMPLETE, "no EMA, no regularizer", _GONE, _ALONE),
    _case("invariance-vit", COMPLETE, "no EMA, no regularizer; ViT", _GONE, _ALONE, encoder=vit),
    _case("no-variance-conv", COMPLETE, "VICReg, mu_var 0", _GONE, VICReg(mu_var=0.0)),
    _case("no-variance-vit", COMPLETE, "VICReg, mu_var 0; ViT", _GONE, VICReg(mu_var=0.0), encoder=vit),
    _case("sigreg-0-conv", COMPLETE, "LeJEPA, SIGReg weight 0", _GONE, LeJEPA(weight=0.0)),
    _case(
        "weight-decay-10-vit-fast",
        COMPLETE,
        "VICReg, ViT, weight decay 10, learning rate 0.03",
        constant("encoder"),
        _V,
        encoder=vit,
        training={"weight_decay": 10.0, "lr": 3e-2},
    ),
]
_DIMENSIONAL = [
    _case("no-covariance-conv", DIMENSIONAL, "VICReg, nu_cov 0", narrow("projector"), VICReg(nu_cov=0.0)),
    _case(
        "no-covariance-vit",
        DIMENSIONAL,
        "VICReg, nu_cov 0; ViT",
        narrow("projector"),
        VICReg(nu_cov=0.0),
        encoder=vit,
    ),
    _case(
        "projector-2-conv",
        DIMENSIONAL,
        "VICReg, projector's hidden layers 2 wide",
        narrow("projector"),
        _V,
        projector=(2, 128),
    ),
    _case(
        "lr-100x-vit",
        DIMENSIONAL,
        "VICReg, ViT, learning rate 0.3",
        both(narrow("encoder"), unlearned),
        _V,
        encoder=vit,
        training={"lr": 0.3},
    ),
    _case(
        "barlow-no-redundancy",
        DIMENSIONAL,
        "Barlow Twins, lambda 0",
        narrow("projector"),
        BarlowTwins(lambda_bt=0.0),
    ),
    _case(
        "no-projector-no-covariance",
        DIMENSIONAL,
        "VICReg on the encoder, nu_cov 0",
        narrow("encoder"),
        VICReg(nu_cov=0.0),
        encoder=vit,
        projector=None,
        training={"seed": 1},
    ),
    _case(
        "lr-0.3-vit",
        DIMENSIONAL,
        "Barlow Twins, ViT, learning rate 0.3",
        both(narrow("encoder"), unlearned),
        BarlowTwins(),
        encoder=vit,
        training={"lr": 0.3},
    ),
]
_TOKEN = [
    _case(
        "token-mean-vit",
        TOKEN,
        "VICReg, ViT, a layer that replaces tokens by their mean",
        alike("tokens"),
        _V,
        encoder=_alike_vit,
    ),
    _case(
        "token-mean-conv",
        TOKEN,
        "VICReg, convolutions, a layer that replaces tokens by their mean",
        alike("tokens"),
        _V,
        encoder=_alike_conv,
        training={"seed": 1},
    ),
    _case(
        "any-token-vit",
        TOKEN,
        "VICReg between any two tokens of a picture; ViT",
        alike("tokens"),
        _V,
        encoder=vit,
        training_pool=RandomToken(),
        training={"seed": 1, "steps": 400},
    ),
]
_UNCLEAR = [
    _case(
        "warm-up-conv", WARMING_UP, "VICReg, cut off after 12 of 400 steps", early, _V, training={"stop": 12}
    ),
    _case(
        "warm-up-vit",
        WARMING_UP,
        "VICReg, ViT, cut off after 12 of 400 steps",
        early,
        _V,
        encoder=vit,
        training={"stop": 12},
    ),
]
CASES = [*_HEALTHY, *_COMPLETE, *_DIMENSIONAL, *_TOKEN, *_UNCLEAR]

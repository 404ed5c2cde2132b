"""The masked recipes: defaults as released, every option reaches its part, run.json brings it all back."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from torchjepa.cli.train import parse
from torchjepa.collapse import VCReg, VICReg
from torchjepa.masking import MultiBlockMasking
from torchjepa.models import LayerNormTargets, PositionStandardize
from torchjepa.nn import ConvStemViT, MeanMaxPool, Predictor, Projector, SharedContextPredictor, ViT
from torchjepa.recipes import IJEPARecipe
from torchjepa.recipes.ijepa_digits import recipe as digits
from torchjepa.recipes.serial import from_json, to_json
from torchjepa.rng import generator
from torchjepa.types import Batch, Grid

SMALL = {"image_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}


def test_by_default_nothing_is_added_to_the_released_model():
    learner = IJEPARecipe(**SMALL, seed=3).build_learner(3, 10)
    assert isinstance(learner.target_norm, LayerNormTargets)
    assert isinstance(learner.projector, nn.Identity)
    assert learner.num_mask_draws == 1
    plain = ViT(**SMALL, seed=3).state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in learner.encoder.state_dict().items())


def test_every_option_reaches_its_part():
    recipe = IJEPARecipe(
        **SMALL,
        stem="conv",
        stem_width=8,
        positions="none",
        init_gain=0.7,
        target_norm=None,
        num_mask_draws=2,
        regularizer=VICReg(),
        regularizer_pool="mean_max",
        projector_dim=24,
        projector_layers=3,
    )
    learner = recipe.build_learner(1, 10)
    assert isinstance(learner.encoder, ConvStemViT)
    assert learner.encoder.config["positions"] == "none"
    assert learner.encoder.stem[0].weight.shape == (8, 1, 3, 3)
    for part in (learner.encoder.blocks[0].attn, learner.predictor.blocks[0].attn):
        weight = part.qkv.weight
        assert weight.std().item() == pytest.approx(0.7 / weight.shape[1] ** 0.5, rel=0.1)
    assert learner.target_norm is None
    assert learner.num_mask_draws == 2
    assert learner.regularizer_pool == MeanMaxPool()
    assert learner.projector.config == Projector(32, 24, 24, num_layers=3).config


def test_the_shared_context_is_an_option_with_the_same_initial_weights():
    plain, shared = (
        parse(["ijepa-tiny", "--predictor-depth", "2", *flags]).recipe for flags in ([], ["--shared-context"])
    )
    assert not plain.shared_context
    assert from_json(plain, json.loads(json.dumps(to_json(shared)))) == shared
    learners = [dataclasses.replace(each, **SMALL).build_learner(3, 10) for each in (plain, shared)]
    assert [type(each.predictor) for each in learners] == [Predictor, SharedContextPredictor]
    theirs, ours = (each.state_dict() for each in learners)
    assert list(ours) == list(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_without_ema_the_encoder_predicts_its_own_tokens():
    recipe = parse(["ijepa-digits", "--no-ema", "--regularizer-pool", "None"]).recipe
    assert not recipe.ema
    assert recipe.regularizer_pool is None
    learner = dataclasses.replace(recipe, regularizer=VCReg(), num_mask_draws=1).build_learner(1, 10)
    assert learner.ema is None
    assert learner.regularizer_pool is None
    assert learner.deployable_encoder is learner.encoder
    assert not hasattr(learner, "target_encoder")
    assert learner.projector.config["in_dim"] == recipe.embed_dim
    batch = Batch((torch.randn(8, 1, 32, 32),), torch.arange(8), torch.full((8,), -1))
    _, targets = learner.targets(batch.views[0])
    assert targets.requires_grad
    loss = learner.loss(batch, 0)
    loss.total.backward()
    assert set(loss.terms) == {"prediction", "variance", "covariance"}


def test_every_learner_has_a_regularizer_of_its_own():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def compute(self, *views):
            self.calls += 1
            return VICReg().compute(*views)

        def loss(self, *views):
            return self.compute(*views).total()

    recipe = dataclasses.replace(digits, regularizer=Counting())
    batch = Batch((torch.randn(8, 1, 32, 32),), torch.arange(8), torch.full((8,), -1))
    first, second = recipe.build_learner(1, 10), recipe.build_learner(1, 10)
    first.loss(batch, 0)
    assert [each.regularizer.calls for each in (first, second)] == [1, 0]
    assert recipe.regularizer.calls == 0


def test_digits_see_seven_tokens_of_nine():
    grid = Grid(h=4, w=4)
    assert isinstance(digits.mask, MultiBlockMasking)
    assert digits.mask.context_length(grid) == 7
    for step in range(20):
        masks = digits.mask(grid, 16, generator(0, "mask", step))
        assert masks.targets.shape[1:] in {(2, 1), (2, 2)}
        for axis in (masks.context // 4, masks.context % 4):
            assert (axis.amax(1) - axis.amin(1)).max() <= 2


def test_digits_train_a_step():
    learner = digits.build_learner(1, 10)
    batch = Batch((torch.randn(8, 1, 32, 32),), torch.arange(8), torch.full((8,), -1))
    loss = learner.loss(batch, 0)
    loss.total.backward()
    assert set(loss.terms) == {"prediction", "invariance", "variance", "covariance"}
    assert not [name for name, p in learner.named_parameters() if p.requires_grad and p.grad is None]
    assert learner.deployable_encoder(batch.views[0]).shape == (8, 16, 64)


def test_run_json_brings_objects_back():
    changed = dataclasses.replace(
        digits,
        target_norm=PositionStandardize(eps=0.1),
        regularizer=VICReg(lambda_inv=3.0),
        projector_dim=None,
        init_gain=None,
    )
    stored = json.loads(json.dumps(to_json(changed)))
    assert stored["target_norm"] == {"class": "PositionStandardize", "eps": 0.1}
    assert from_json(digits, stored) == changed
    with pytest.raises(ValueError, match="target_norm is a PositionStandardize in the file but a LayerNorm"):
        from_json(IJEPARecipe(), stored)


def test_flags_of_the_command():
    flags = ["--num-mask-draws", "3", "--projector-dim", "7", "--stem", "linear", "--init-gain", "None"]
    recipe = parse(["ijepa-digits", *flags, "--mask.num-targets", "1"]).recipe
    assert (recipe.num_mask_draws, recipe.projector_dim, recipe.stem, recipe.init_gain) == (
        3,
        7,
        "linear",
        None,
    )
    assert recipe.mask.num_targets == 1
    assert recipe.target_norm == PositionStandardize()
    assert recipe.regularizer == digits.regularizer

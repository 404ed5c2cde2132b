"""An update that is followed takes what a real one takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from torchjepa.engine import Footprint, follow_update, time_updates
from torchjepa.engine.devices import launch
from torchjepa.engine.estimate import _batches
from torchjepa.engine.ledger import Ledger
from torchjepa.engine.step import Stepper
from torchjepa.masking import RandomMasking
from torchjepa.nn import ViT
from torchjepa.nn.native.structures import kernels_while_followed
from torchjepa.recipes import IJEPARecipe
from torchjepa.recipes.find import find_recipe
from torchjepa.types import Batch, Loss

RECIPE = IJEPARecipe(
    image_size=32,
    patch_size=4,
    embed_dim=32,
    depth=2,
    num_heads=2,
    predictor_dim=16,
    predictor_depth=2,
    predictor_heads=2,
    mask=RandomMasking(0.6),  # as large in every step
    batch_size=8,
    accelerator="cpu",
)
SHAPES = [(3, 32, 32)]


def follow(num_devices: int = 1, **changes: Any) -> Footprint:
    recipe = dataclasses.replace(RECIPE, **changes)
    return follow_update(
        lambda: recipe.seeded_learner(3, 100), SHAPES, recipe.train_settings(100), num_devices
    )


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"precision": "bf16-mixed", "clip_grad": 1.0}])
def test_the_peak_is_that_of_a_real_update(changes: Mapping[str, Any]) -> None:
    recipe = dataclasses.replace(RECIPE, **changes)
    settings = recipe.train_settings(100)
    learner = recipe.seeded_learner(3, 100)
    stepper, ledger = Stepper(launch(settings), learner, settings), Ledger(learner)
    stream = _batches([torch.randn(8 // recipe.accumulate, *SHAPES[0])], settings)
    with ledger.watching():
        stepper.update(stream, 0)
        ledger.assign("state", [*stepper.state_tensors(), *learner.parameters()])
        ledger.start()
        with kernels_while_followed():
            stepper.update(stream, 1)
    assert sum(ledger.peak.values()) == pytest.approx(follow(**changes).bytes, abs=1024)  # small real scalars


def test_state_is_counted_by_its_parameters() -> None:
    footprint, learner = follow(), RECIPE.seeded_learner(3, 100)
    assert isinstance(learner.encoder, nn.Module)
    numbers = {name: sum(p.numel() for p in part.parameters()) for name, part in learner.named_children()}
    assert footprint.parameters == {name: number for name, number in numbers.items() if number}
    trained = 4 * (numbers["encoder"] + numbers["predictor"])
    assert footprint.whole["weights"] == footprint.whole["gradients"] == trained
    assert footprint.whole["target"] == 4 * numbers["encoder"]
    tensors = sum(1 for parameter in learner.parameters() if parameter.requires_grad)
    assert footprint.whole["optimizer"] == 2 * trained + 4 * tensors  # each with a count of steps


def test_flops_follow_the_formula() -> None:
    tokens, width, patch, depth = 64, 32, 4 * 4 * 3, 2
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    full = 2 * tokens * patch * width + depth * block
    footprint = follow()
    assert footprint.flops["target_encoder"] == full
    # Each product costs two in the backward pass, attention's recomputed weights one more of four; inputs get none.
    trained = footprint.flops["encoder"] + footprint.flops["predictor"]
    assert 1.9 * trained < footprint.flops["backward"] < 2.2 * trained


def test_recomputing_trades_memory_for_flops() -> None:
    kept, recomputed = (
        follow(depth=6, batch_size=32),
        follow(depth=6, batch_size=32, recompute_activations=True),
    )
    assert recomputed.peak["activations"] < 0.5 * kept.peak["activations"]
    more = recomputed.flops["backward"] - kept.flops["backward"]
    blocks = kept.flops["encoder"] + kept.flops["predictor"]
    assert (
        0.6 * blocks < more < blocks
    )  # torch stops as soon as it has all it needs: without the last product


def test_memory_grows_with_the_batch_and_flops_of_a_sample_do_not() -> None:
    small, large = follow(batch_size=8), follow(batch_size=64)
    assert large.flops_per_sample == pytest.approx(small.flops_per_sample, rel=0.01)
    assert 6 < large.peak["activations"] / small.peak["activations"] < 8.5


def test_accumulating_needs_the_activations_of_one_micro_batch() -> None:
    whole, split = follow(batch_size=64), follow(batch_size=64, accumulate=8)
    assert split.peak["activations"] < 0.25 * whole.peak["activations"]


def test_several_devices_copy_or_spread_the_state() -> None:
    alone, copied, spread = follow(), follow(4, batch_size=32), follow(4, batch_size=32, strategy="fsdp")
    assert copied.peak["messages"] == alone.whole["gradients"]
    more = copied.bytes - alone.bytes - copied.peak["messages"]
    assert 0 <= more < 2**15  # masks are drawn for the global batch
    assert copied.sent == 2 * alone.whole["gradients"] * 3 // 4
    for kind in ("weights", "optimizer", "target"):
        assert spread.whole[kind] == alone.whole[kind] // 4
    assert spread.peak["activations"] == copied.peak["activations"]
    assert spread.sent > copied.sent


@pytest.mark.parametrize("name", ["digits", "vicreg-tiny", "barlow-tiny", "lejepa-digits"])
def test_every_family_can_be_followed(name: str) -> None:
    from torchjepa.cli.estimate import view_shapes

    recipe = dataclasses.replace(find_recipe(name), batch_size=16, accelerator="cpu")
    footprint = follow_update(
        lambda: recipe.seeded_learner(3, 100), view_shapes(recipe, 3), recipe.train_settings(100)
    )
    assert footprint.bytes > 0
    assert footprint.flops["backward"] > 0


class PicksByValue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(32, 4)

    def loss(self, batch: Batch, step: int) -> Loss:
        x = batch.views[0]
        return Loss(self.encoder(x[x.mean((1, 2, 3)) > 0]).mean())

    def after_step(self, step: int) -> None: ...


def test_shapes_that_depend_on_values_are_refused() -> None:
    with pytest.raises(ValueError, match="PicksByValue cannot be estimated: the shapes of its tensors"):
        follow_update(PicksByValue, SHAPES, RECIPE.train_settings(100))


def test_a_batch_that_does_not_split_is_refused() -> None:
    with pytest.raises(ValueError, match="does not split evenly over 3"):
        follow(3)


def test_following_leaves_no_fake_behind() -> None:
    follow()
    network = ViT(image_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    assert network(torch.ones(1, 3, 16, 16)).isfinite().all()


def test_updates_are_timed_on_the_share_of_one_device() -> None:
    speed = time_updates(
        lambda: RECIPE.seeded_learner(3, 100), SHAPES, RECIPE.train_settings(100), num_devices=4, seconds=0.0
    )
    assert speed.samples == 2
    assert len(speed.seconds) == 1
    assert speed.samples_per_second == speed.samples / speed.seconds[0]
    assert speed.device.startswith("cpu")

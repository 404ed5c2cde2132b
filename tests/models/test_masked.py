"""Several masks for each sample, several views, targets of several levels."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.models.parts import images, small_ijepa
from torchjepa import rng
from torchjepa.collapse import VICReg
from torchjepa.ema import EMA
from torchjepa.energy import L2Energy
from torchjepa.engine import TrainSettings, follow_update
from torchjepa.masking import RandomMasking, vjepa_masks
from torchjepa.models import VJEPA, MaskedJEPA
from torchjepa.nn import ConvStemViT, Predictor, ViT
from torchjepa.types import Batch, Grid

GRID = Grid(h=3, w=4)
HALF, MOST = RandomMasking(0.5), RandomMasking(0.75, num_targets=3)


def small(encoder=None, predictor=None, **changes):
    encoder = encoder or ViT(patch_size=4, embed_dim=16, depth=2, num_heads=2)
    predictor = predictor or Predictor(
        encoder_dim=16, embed_dim=8, depth=1, num_heads=2, num_mask_tokens=2, positions="wh"
    )
    return MaskedJEPA(
        encoder,
        predictor,
        **{"mask": [HALF, MOST], "energy": L2Energy(), "ema": EMA(0.9), "mask_tokens": [0, 1]} | changes,
    )


def slow_terms(model, x, masks):
    """Energy, contexts and predictions of each mask, by itself."""
    full = F.layer_norm(model.target_encoder(x), (16,), eps=1e-5)
    for index, each in enumerate(masks):
        context = model.encoder(x, each.context)
        prediction = model.predictor(context, each.context, each.targets, GRID, model.mask_tokens[index])
        target = torch.stack([full[i, ids] for i, ids in enumerate(each.targets)])
        yield (prediction - target).square().mean(), context.mean(1)


class Counting(nn.Module):
    """Notes the shape of every call's ids."""

    takes_segments = True

    def __init__(self, encoder):
        super().__init__()
        self.inner, self.embed_dim, self.grid, self.calls = encoder, encoder.embed_dim, encoder.grid, []

    def forward(self, x, ids=None, **kwargs):
        self.calls.append((len(x), None if ids is None else ids.shape[1]))
        return self.inner(x, ids, **kwargs)


ENCODERS = {
    "sin-cos": partial(ViT, positions="wh"),
    "rotary": partial(ViT, positions="rope"),
    "without segments": partial(ConvStemViT, stem_width=8),
}


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("masks", [[HALF, MOST], [HALF, RandomMasking(0.5)]])
def test_the_loss_is_the_mean_over_masks_of_means_over_tokens(kind, masks):
    encoder = ENCODERS[kind](patch_size=4, embed_dim=16, depth=2, num_heads=1)
    model, batch = small(encoder, mask=masks, regularizer=VICReg(), seed=7), images()
    keys = [("mask", 4), ("mask", 4, 0, 1)]
    drawn = [mask(GRID, 6, rng.generator(7, *key)) for mask, key in zip(masks, keys)]
    energies, contexts = zip(*slow_terms(model, batch.views[0], drawn))
    expected = sum(energies) / 2 + VICReg().loss(*contexts)
    parameters = [*model.encoder.parameters(), *model.predictor.parameters()]
    gradients = torch.autograd.grad(expected, parameters)
    loss = model.loss(batch, 4)
    loss.total.backward()
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.terms["prediction"], (sum(energies) / 2).detach())
    for parameter, gradient in zip(parameters, gradients):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loss.features["encoder"], contexts[0].detach())


def test_contexts_of_any_length_are_one_call_and_the_target_encoder_runs_once():
    model = small(num_mask_draws=2)
    model.encoder, model.target_encoder = Counting(model.encoder), Counting(model.target_encoder)
    model.loss(images(), 0)
    assert model.encoder.calls == [(6, 6 + 3 + 6 + 3)]
    assert model.target_encoder.calls == [(6, None)]


def test_more_masks_and_draws_leave_the_first_as_it_was():
    model, alone, batch = small(num_mask_draws=2), small_ijepa(mask=HALF), images()
    assert model.mask is model.masks[0] is HALF
    first = alone.draw_masks(GRID, batch, 3)
    assert torch.equal(model.draw_masks(GRID, batch, 3).context, first.context)
    same = small(mask=[HALF, HALF])
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    drawn = [same.draw_masks(GRID, batch, 3, *place).context.flatten().tolist() for place in places]
    assert len(set(map(tuple, drawn))) == 4
    assert drawn[2] == alone.draw_masks(GRID, batch, 3, 1).context.flatten().tolist()


def test_views_are_samples_with_masks_of_their_own():
    model, batch = small(), images(num_views=2)
    loss = model.loss(batch, 3)
    samples = torch.stack([batch.views[view][i] for i in range(6) for view in range(2)])
    ids = torch.arange(12)
    expected = model.loss(Batch((samples,), ids, torch.full((12,), -1)), 3)
    assert torch.equal(loss.total, expected.total)
    assert torch.equal(loss.features["tokens"], expected.features["tokens"])
    masks = model.draw_masks(GRID, batch, 3)
    assert len(masks) == 12
    assert not torch.equal(masks.context[::2], masks.context[1::2])


def test_parts_of_a_batch_of_views_draw_the_masks_of_the_whole():
    model, whole = small(), images(num_views=3)
    parts = []
    for start, stop in ((0, 2), (2, 6)):
        views = tuple(view[start:stop] for view in whole.views)
        part = Batch(views, whole.ids[start:stop], whole.labels[start:stop], start, 6)
        parts.append(model.draw_masks(GRID, part, 5, index=1).targets)
    assert torch.equal(torch.cat(parts), model.draw_masks(GRID, whole, 5, index=1).targets)


def test_targets_of_several_levels_stand_side_by_side():
    predictor = Predictor(encoder_dim=16, embed_dim=8, depth=1, num_heads=2, target_dim=32)
    model = small(None, predictor, mask=HALF, mask_tokens=None, target_layers=[0, -1], energy=L2Energy())
    batch, x = images(), images().views[0]
    tokens = model.target_encoder.patch_embed(F.unfold(x, 4, stride=4).mT)
    tokens = tokens + model.target_encoder.positions(GRID, tokens)
    levels = []
    for block in model.target_encoder.blocks:
        tokens = block(tokens)
        levels.append(
            (tokens - tokens.mean(-1, keepdim=True))
            / (tokens.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        )
    masks = model.draw_masks(GRID, batch, 2)
    prediction = predictor(model.encoder(x, masks.context), masks.context, masks.targets, GRID)[:, 0]
    wanted = torch.stack(
        [torch.cat([level[i, ids[0]] for level in levels], 1) for i, ids in enumerate(masks.targets)]
    )
    loss = model.loss(batch, 2)
    torch.testing.assert_close(loss.total, (prediction - wanted).square().mean())
    torch.testing.assert_close(loss.features["target_tokens"], model.target_encoder.norm(tokens))
    loss.total.backward()
    assert all(p.grad is not None for p in model.predictor.parameters())


def test_without_a_norm_the_levels_are_as_they_are():
    predictor = Predictor(encoder_dim=16, embed_dim=8, depth=1, num_heads=2)
    model = small(None, predictor, mask=HALF, mask_tokens=None, target_layers=[1], target_norm=None)
    full, wanted = model.targets(images().views[0])
    torch.testing.assert_close(full, model.target_encoder.norm(wanted))


def video_learner():
    encoder = ViT(patch_size=(2, 8, 8), embed_dim=12, depth=2, num_heads=2, positions="rope")
    predictor = Predictor(
        encoder_dim=12, embed_dim=12, depth=1, num_heads=2, positions="rope", num_mask_tokens=2, target_dim=24
    )
    return VJEPA(encoder, predictor, mask=vjepa_masks(), target_layers=[0, 1])


def test_a_step_can_be_followed_without_memory():
    settings = TrainSettings(
        total_steps=10,
        global_batch_size=4,
        learning_rate=lambda step: 1e-3,
        weight_decay=lambda step: 0.0,
        accelerator="cpu",
    )
    footprint = follow_update(video_learner, [(3, 4, 64, 64)] * 2, settings, 1)
    assert footprint.parameters["encoder"] == footprint.parameters["target_encoder"]
    # Both clips of a sample go through the target encoder once for both masks.
    n, d, patch = 2 * 8 * 8, 12, 3 * 2 * 8 * 8
    of_a_clip = 2 * n * patch * d + 2 * (2 * n * 12 * d**2 + 4 * n**2 * d)
    assert footprint.flops["target_encoder"] == 2 * of_a_clip


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="mask must be a MaskSampler or several, got none"):
        small(mask=[])
    with pytest.raises(ValueError, match=r"a mask token for each of the 2 masks, got \[0\]"):
        small(mask_tokens=[0])
    with pytest.raises(
        ValueError, match=r"mask_tokens \[0, 2\] are not all .* 2; build it with num_mask_tokens=3"
    ):
        small(mask_tokens=[0, 2])
    with pytest.raises(ValueError, match=r"predicts tokens of 16 channels, .* target_dim=32"):
        small(target_layers=[0, 1])
    with pytest.raises(ValueError, match="target_layers must name at least one"):
        small(target_layers=[])
    batch = Batch((torch.zeros(2, 3, 12, 16), torch.zeros(2, 3, 8, 16)), torch.arange(2), torch.arange(2))
    with pytest.raises(ValueError, match="views of a batch must have one shape"):
        small().loss(batch, 0)


def test_a_predictor_of_ones_own_need_not_know_of_mask_tokens():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, context, context_ids, target_ids, grid):
            return self.linear(context.mean(1))[:, None, None].expand(*target_ids.shape, -1)

    model = small(None, Own(), mask_tokens=None)
    model.loss(images(), 0).total.backward()
    assert model.predictor.linear.weight.grad.abs().sum() > 0

"""Several mask draws for each sample, the two branches of the regularizer, the projector."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.models.parts import RandomHalf, images, small_ijepa
from torchjepa import rng
from torchjepa.collapse import VICReg
from torchjepa.ema import EMA
from torchjepa.energy import SmoothL1Energy
from torchjepa.models import IJEPA, PositionStandardize
from torchjepa.nn import ConvStemViT, MeanMaxPool, Predictor, Projector
from torchjepa.types import Grid, Masks

GRID = Grid(h=3, w=4)


class OfAnyLength:
    """Contexts and targets of other lengths at every draw."""

    def __call__(self, grid, batch_size, generator):
        order = torch.rand(batch_size, grid.num_tokens, generator=generator).argsort(1)
        num = 3 + int(torch.randint(4, (), generator=generator))
        blocks = order[:, num : num + 4].reshape(batch_size, 2, 2)[..., : 1 + num % 2]
        return Masks(order[:, :num].sort(1).values, blocks.sort(2).values)


class Counting(nn.Module):
    """Notes the batch size of every call."""

    def __init__(self, encoder):
        super().__init__()
        self.inner, self.embed_dim, self.grid, self.calls = encoder, encoder.embed_dim, encoder.grid, []

    def forward(self, x, ids=None):
        self.calls.append(len(x))
        return self.inner(x, ids)


def slow_parts(model, x, masks):
    """Energy, pooled contexts and pooled predictions of one draw, by itself."""
    context = model.encoder(x, masks.context)
    prediction = model.predictor(context, masks.context, masks.targets, GRID)
    full = F.layer_norm(model.target_encoder(x), (16,), eps=1e-5)
    target = torch.stack([full[i, ids] for i, ids in enumerate(masks.targets)])
    return F.smooth_l1_loss(prediction, target), context.mean(1), prediction.flatten(1, 2).mean(1)


@pytest.mark.parametrize("mask", [RandomHalf(), OfAnyLength()])
@pytest.mark.parametrize("ema", [EMA(0.996), None])
def test_loss_is_the_mean_over_independent_draws(mask, ema):
    model = small_ijepa(mask=mask, num_mask_draws=3, regularizer=VICReg(), seed=7, ema=ema)
    if ema is None:
        model.target_encoder = model.encoder
    batch = images()
    keys = [("mask", 4), ("mask", 4, 1), ("mask", 4, 2)]
    draws = [mask(GRID, 6, rng.generator(7, *key)) for key in keys]
    energies, contexts, _ = zip(*(slow_parts(model, batch.views[0], masks) for masks in draws))
    expected = sum(energies) / 3 + VICReg().loss(contexts[0], contexts[1])
    gradients = torch.autograd.grad(expected, list(model.encoder.parameters()))
    loss = model.loss(batch, 4)
    loss.total.backward()
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.terms["prediction"], (sum(energies) / 3).detach())
    for parameter, gradient in zip(model.encoder.parameters(), gradients):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loss.features["encoder"], contexts[0].detach())
    first = SmoothL1Energy()(loss.features["prediction"], loss.features["target"])
    torch.testing.assert_close(first, energies[0].detach())


def test_the_first_draw_is_that_of_a_single_one():
    one, two, batch = small_ijepa(), small_ijepa(num_mask_draws=2), images()
    first, second = (two.draw_masks(GRID, batch, 3, draw) for draw in (0, 1))
    assert torch.equal(one.draw_masks(GRID, batch, 3).context, first.context)
    assert not torch.equal(first.context, second.context)
    assert not torch.equal(second.context, one.draw_masks(GRID, batch, 1).context)


def test_equal_contexts_share_a_pass_and_the_target_encoder_runs_once():
    model = small_ijepa(num_mask_draws=3)
    model.encoder, model.target_encoder = Counting(model.encoder), Counting(model.target_encoder)
    model.loss(images(), 0)
    assert model.encoder.calls == [18]
    assert model.target_encoder.calls == [6]
    model.masks = (OfAnyLength(),)
    model.loss(images(), 0)
    assert model.encoder.calls[1:] == [6, 6, 6]


def test_both_branches_pass_the_projector_one_after_the_other():
    projector = Projector(32, 8, 5, num_layers=2)
    model = small_ijepa(
        num_mask_draws=2,
        regularizer=VICReg(1.0, 1.0, 0.04),
        regularizer_weight=0.5,
        regularizer_pool=MeanMaxPool(),
        projector=projector,
    )
    batch = images()
    draws = [model.draw_masks(GRID, batch, 0, draw) for draw in (0, 1)]
    contexts = [model.encoder(batch.views[0], masks.context) for masks in draws]
    pooled = [torch.cat([each.mean(1), each.amax(1)], 1) for each in contexts]
    parts = VICReg(1.0, 1.0, 0.04).compute(projector(pooled[0]), projector(pooled[1]))
    loss = model.loss(batch, 0)
    for name in ("invariance", "variance", "covariance"):
        torch.testing.assert_close(loss.terms[name], 0.5 * getattr(parts, name).detach())
    torch.testing.assert_close(loss.features["encoder"], pooled[0].detach())
    loss.total.backward()
    assert all(p.grad.abs().sum() > 0 for p in projector.parameters())
    assert {name.split(".")[0] for name in model.state_dict()} == {
        "encoder",
        "predictor",
        "projector",
        "target_encoder",
    }
    assert "projector" not in dict(model.deployable_encoder.named_modules())


def test_one_draw_projects_the_predictions():
    projector = nn.Linear(16, 3)
    model = small_ijepa(regularizer=VICReg(), projector=projector, seed=2)
    batch = images()
    _, context, prediction = slow_parts(model, batch.views[0], model.draw_masks(GRID, batch, 0))
    expected = VICReg().compute(projector(context), projector(prediction))
    torch.testing.assert_close(model.loss(batch, 0).terms["invariance"], expected.invariance.detach())


def test_targets_are_standardised_over_the_whole_batch():
    model = small_ijepa(target_norm=PositionStandardize())
    batch = images()
    masks = model.draw_masks(GRID, batch, 0)
    full = PositionStandardize()(model.target_encoder(batch.views[0]))
    expected = torch.cat([full[i, ids].flatten(0, 1) for i, ids in enumerate(masks.targets)])
    target = model.loss(batch, 0).features["target"]
    torch.testing.assert_close(target, expected.detach())


def test_everything_together_learns():
    torch.manual_seed(0)
    encoder = ConvStemViT(patch_size=4, embed_dim=16, depth=1, num_heads=2, stem_width=8, positions="none")
    model = IJEPA(
        encoder,
        Predictor(encoder_dim=16, embed_dim=8, depth=1, num_heads=2),
        mask=RandomHalf(),
        ema=EMA(0.9),
        regularizer=VICReg(1.0, 1.0, 0.04),
        projector=Projector(16, 16, 16, num_layers=2),
        target_norm=PositionStandardize(),
        num_mask_draws=2,
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step in range(30):
        loss = model.loss(images(16), step)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        model.after_step(step)
        losses.append(loss.total.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="num_mask_draws must be at least 1, got 0"):
        small_ijepa(num_mask_draws=0)
    with pytest.raises(ValueError, match="projector without a regularizer is never trained"):
        small_ijepa(projector=nn.Linear(16, 4))

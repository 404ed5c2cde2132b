"""What I-JEPA promises as a learner."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.models.parts import RandomHalf, images, small_ijepa
from torchjepa import rng
from torchjepa.collapse import VICReg
from torchjepa.ema import EMA, LinearMomentumSchedule
from torchjepa.energy import CosineEnergy, L2Energy, SmoothL1Energy
from torchjepa.masking import MultiBlockMasking, RandomMasking
from torchjepa.models import IJEPA
from torchjepa.nn import ConvEncoder, MeanMaxPool, Predictor
from torchjepa.types import Batch, Grid, Learner, Masks


def test_target_starts_as_a_copy_and_has_no_gradient():
    model = small_ijepa()
    online = model.encoder.state_dict()
    assert all(torch.equal(value, online[name]) for name, value in model.target_encoder.state_dict().items())
    model.loss(images(), 0).total.backward()
    assert not [p for p in model.target_encoder.parameters() if p.requires_grad or p.grad is not None]
    assert not [n for n, p in model.encoder.named_parameters() if p.grad is None]
    assert not [n for n, p in model.predictor.named_parameters() if p.grad is None]


def test_after_a_step_every_target_tensor_is_the_moving_average():
    ema = EMA(0.9, LinearMomentumSchedule(0.9, total_steps=10))
    model = small_ijepa(ema=ema)
    before = copy.deepcopy(model.target_encoder.state_dict())
    optimizer = torch.optim.AdamW(model.encoder.parameters(), lr=0.1, eps=1e-20)
    model.loss(images(), 4).total.backward()
    optimizer.step()
    model.after_step(4)
    m = 0.9 + 4 * 0.1 / 10
    assert model.scheduled(4) == {"momentum": pytest.approx(m)}
    online = model.encoder.state_dict()
    for name, value in model.target_encoder.state_dict().items():
        torch.testing.assert_close(value, m * before[name] + (1 - m) * online[name])


def slow_loss(model, x, masks, grid):
    """Sample by sample, block by block, in float64 where it counts."""
    energies, encoded, predicted = [], [], []
    full = model.target_encoder(x)
    for i in range(len(x)):
        context = model.encoder(x[i : i + 1], masks.context[i : i + 1])
        encoded.append(context.mean(1))
        blocks = []
        for block in masks.targets[i]:
            prediction = model.predictor(context, masks.context[i : i + 1], block[None, None], grid)
            target = F.layer_norm(full[i, block], (16,), eps=1e-5)
            energies.append(F.smooth_l1_loss(prediction[0, 0], target))
            blocks.append(prediction[0, 0])
        predicted.append(torch.cat(blocks).mean(0, keepdim=True))
    return torch.stack(energies).mean(), torch.cat(encoded), torch.cat(predicted)


def test_loss_equals_a_loop_over_samples_and_blocks():
    model = small_ijepa(depth=2, regularizer=VICReg(), regularizer_weight=0.1, seed=7)
    batch, grid = images(), Grid(h=3, w=4)
    masks = model.mask(grid, 6, rng.generator(7, "mask", 3))
    energy, encoded, predicted = slow_loss(model, batch.views[0], masks, grid)
    expected = energy + 0.1 * VICReg().loss(encoded, predicted)
    gradients = torch.autograd.grad(expected, list(model.encoder.parameters()))
    loss = model.loss(batch, 3)
    loss.total.backward()
    torch.testing.assert_close(loss.total, expected)
    for parameter, gradient in zip(model.encoder.parameters(), gradients):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loss.features["encoder"], encoded.detach())
    torch.testing.assert_close(loss.terms["prediction"], energy.detach())
    torch.testing.assert_close(sum(loss.terms.values()), expected.detach())


def test_features_are_detached_and_pair_up():
    loss = small_ijepa().loss(images(), 0)
    assert {name: tuple(value.shape) for name, value in loss.features.items()} == {
        "encoder": (6, 16),
        "tokens": (6, 5, 16),
        "target_tokens": (6, 12, 16),
        "prediction": (24, 16),
        "target": (24, 16),
    }
    assert not [v for v in (*loss.features.values(), *loss.terms.values()) if v.requires_grad]
    energy = SmoothL1Energy()(loss.features["prediction"], loss.features["target"])
    torch.testing.assert_close(energy, loss.terms["prediction"])


class OwnEncoder(nn.Module):
    """A user's own: patches through one linear layer, a token grid, nothing of ours but the call."""

    embed_dim = 16

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 4 * 4, 16)

    def grid(self, input_shape):
        return Grid(h=input_shape[0] // 4, w=input_shape[1] // 4)

    def forward(self, x, ids=None):
        tokens = self.linear(F.unfold(x, 4, stride=4).mT)
        return tokens if ids is None else tokens[torch.arange(len(x))[:, None], ids]


@pytest.mark.parametrize("mask", [MultiBlockMasking(), RandomMasking(0.5)])
def test_own_encoder_with_any_energy_and_mask(mask):
    model = IJEPA(OwnEncoder(), small_ijepa().predictor, mask=mask, energy=CosineEnergy(), seed=1)
    loss = model.loss(images(size=(32, 32)), 0)
    loss.total.backward()
    model.after_step(0)
    assert model.encoder.linear.weight.grad.abs().sum() > 0
    assert model.encode(images(size=(32, 32)).views[0]).shape == (6, 64, 16)


def test_parts_of_a_batch_draw_the_masks_of_the_whole():
    model, whole, grid = small_ijepa(), images(), Grid(h=3, w=4)
    masks = model.draw_masks(grid, whole, 5)
    parts = []
    for start in (0, 2):
        rows = slice(start, start + (2 if start == 0 else 4))
        part = Batch((whole.views[0][rows],), whole.ids[rows], whole.labels[rows], start, 6)
        parts.append(model.draw_masks(grid, part, 5))
    for field in dataclasses.fields(Masks):
        joined = torch.cat([getattr(part, field.name) for part in parts])
        assert torch.equal(joined, getattr(masks, field.name))
    assert not torch.equal(masks.context, model.draw_masks(grid, whole, 6).context)


def test_gradients_of_halves_average_to_those_of_the_whole():
    model, whole = small_ijepa(), images()
    model.loss(whole, 2).total.backward()
    expected = [p.grad.clone() for p in model.encoder.parameters()]
    model.zero_grad()
    for start in (0, 3):
        rows = slice(start, start + 3)
        part = Batch((whole.views[0][rows],), whole.ids[rows], whole.labels[rows], start, 6)
        (model.loss(part, 2).total / 2).backward()
    for parameter, gradient in zip(model.encoder.parameters(), expected):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)


def test_loss_is_a_function_of_parameters_batch_and_step():
    model = small_ijepa()
    first = model.loss(images(), 1).total
    torch.manual_seed(0)
    assert torch.equal(first, model.loss(images(), 1).total)
    assert not torch.equal(first, model.loss(images(), 2).total)


def test_a_shared_encoder_is_trained_by_its_targets_too():
    model = small_ijepa(ema=None, regularizer=VICReg(), target_norm=None, energy=L2Energy())
    batch = images()
    assert not [name for name in model.state_dict() if name.startswith("target_encoder")]
    assert model.scheduled(0) == {}
    loss = model.loss(batch, 0)
    loss.total.backward()
    masks = model.draw_masks(Grid(h=3, w=4), batch, 0)
    full = model.encoder(batch.views[0])
    context = model.encoder(batch.views[0], masks.context)
    prediction = model.predictor(context, masks.context, masks.targets, Grid(h=3, w=4))
    target = torch.stack([full[i, ids] for i, ids in enumerate(masks.targets)])
    expected = (prediction - target).square().mean() + VICReg().loss(context.mean(1), full.mean(1))
    torch.testing.assert_close(loss.total, expected)
    gradient = torch.autograd.grad(expected, model.encoder.patch_embed.weight)[0]
    torch.testing.assert_close(model.encoder.patch_embed.weight.grad, gradient, atol=1e-5, rtol=1e-4)
    before = copy.deepcopy(model.state_dict())
    model.after_step(0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_momentum_zero_is_the_encoder_without_gradient():
    model = small_ijepa(ema=EMA(0.0))
    with torch.no_grad():
        model.encoder.norm.bias.add_(1.0)
    model.after_step(0)
    assert torch.equal(model.target_encoder.norm.bias, model.encoder.norm.bias)


def test_pool_of_the_regularizer():
    model = small_ijepa(regularizer=VICReg(), regularizer_pool=MeanMaxPool())
    assert model.loss(images(), 0).features["encoder"].shape == (6, 32)


def test_encode_is_the_target_encoder_in_evaluation_mode():
    model = small_ijepa()
    with torch.no_grad():
        model.encoder.norm.bias.add_(1.0)
    model.target_encoder.blocks[0].eval()
    x = images().views[0]
    tokens = model.encode(x)
    torch.testing.assert_close(tokens, model.target_encoder(x))
    assert not tokens.requires_grad
    assert model.target_encoder.training
    assert not model.target_encoder.blocks[0].training


def test_it_is_a_learner_with_the_agreed_names():
    model = small_ijepa()
    assert isinstance(model, Learner)
    assert {name.split(".")[0] for name in model.state_dict()} == {"encoder", "predictor", "target_encoder"}


def test_plain_training_lowers_the_loss():
    model = small_ijepa(ema=EMA(0.9))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
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
    with pytest.raises(ValueError, match="regularizer_weight must not be negative, got -1"):
        small_ijepa(regularizer_weight=-1.0)
    encoder = small_ijepa().encoder
    with pytest.raises(ValueError, match="takes tokens of 8 channels, the encoder gives 16; build it with"):
        IJEPA(encoder, Predictor(encoder_dim=8, embed_dim=8, depth=1, num_heads=2), mask=RandomHalf())
    conv = ConvEncoder(widths=(4, 16), strides=(2, 2))
    model = IJEPA(conv, small_ijepa().predictor, mask=small_ijepa().mask)
    with pytest.raises(ValueError, match="hidden patches would leak"):
        model.loss(images(), 0)
    with pytest.raises(ValueError, match="not a whole number of patches"):
        small_ijepa().loss(images(size=(13, 16)), 0)

"""I-JEPA without an EMA, by parts: SIGReg keeps one shared encoder from collapsing, and nothing else does."""

import pytest
import torch

from torchjepa.collapse import SIGReg
from torchjepa.data import DigitsSource, Preprocessing
from torchjepa.energy import L2Energy
from torchjepa.masking import MultiBlockMasking
from torchjepa.models import IJEPA
from torchjepa.nn import MeanPool, Predictor, ViT
from torchjepa.types import Batch

SIZES = {
    "patch_size": 8,
    "embed_dim": 32,
    "num_heads": 2,
    "in_channels": 1,
    "positions": "none",
    "init_std": 0.1,
}


def make(weight, pool):
    return IJEPA(
        ViT(depth=1, **SIZES),
        Predictor(encoder_dim=32, embed_dim=16, depth=1, num_heads=1, init_std=0.1),
        mask=MultiBlockMasking(
            num_targets=2, target_scale=(0.06, 0.13), context_scale=(0.55, 0.58), min_context=7
        ),
        energy=L2Energy(),
        ema=None,
        target_norm=None,
        regularizer=SIGReg(num_slices=64),
        regularizer_weight=weight,
        regularizer_pool=pool,
    )


def trained_spread(weight, pool=None):
    """The spread over images of the pooled features, before and after a few updates, relative to their length."""
    source, preprocessing = DigitsSource("train", 256), Preprocessing(32, 1, (0.0,), (0.25,))
    images = torch.stack([preprocessing(source.read(i)) for i in range(256)])
    model = make(weight, pool)

    def spread():
        features = model.encode(images).mean(dim=1)
        return (features.std(dim=0).norm() / features.norm(dim=1).mean()).item()

    before = spread()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(60):
        rows = torch.arange(32) + 32 * (step % 8)
        loss = model.loss(Batch((images[rows],), rows, torch.full((32,), -1)), step)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        model.after_step(step)
    return before, spread()


@pytest.mark.parametrize("pool", [None, MeanPool()])
def test_sigreg_keeps_a_shared_encoder_alive_where_nothing_lets_it_collapse(pool):
    before, kept = trained_spread(0.05, pool)
    _, collapsed = trained_spread(0.0, pool)
    assert kept > before
    assert collapsed < before / 3
    assert kept > 10 * collapsed


def test_targets_carry_gradient_and_there_is_one_encoder():
    model = make(0.0, None)
    batch = Batch((torch.randn(4, 1, 32, 32),), torch.arange(4), torch.full((4,), -1))
    assert model.deployable_encoder is model.encoder
    assert not any(name.startswith("target_encoder") for name in model.state_dict())
    _, targets = model.targets(batch.views[0])
    assert targets.requires_grad
    assert model.scheduled(3) == {}

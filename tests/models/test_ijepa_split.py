"""The two parts of I-JEPA's loss, what the regularizer sees of the tokens, and training without an EMA."""

import pytest
import torch

from tests.models.parts import images, small_ijepa
from torchjepa.collapse import SIGReg, VCReg, VICReg
from torchjepa.evaluation.spectrum import effective_rank
from torchjepa.nn import Projector
from torchjepa.types import SplitLearner


def test_without_a_regularizer_nothing_couples_samples():
    model, batch = small_ijepa(), images()
    assert isinstance(model, SplitLearner)
    embedded = model.embed(batch, 2)
    assert embedded.embeddings == ()
    assert torch.equal(embedded.local.total, model.loss(batch, 2).total)
    assert model.joint_loss((), 2).total == 0


def test_the_loss_is_the_energy_and_the_joint_loss():
    model, batch = (
        small_ijepa(regularizer=VICReg(), regularizer_weight=0.3, projector=Projector(16, 8, 5)),
        images(),
    )
    embedded = model.embed(batch, 2)
    joint = model.joint_loss(embedded.embeddings, 2)
    whole = model.loss(batch, 2)
    torch.testing.assert_close(whole.total, embedded.local.total + joint.total)
    assert set(whole.terms) == {"prediction", "invariance", "variance", "covariance"}
    torch.testing.assert_close(sum(whole.terms.values()), whole.total.detach())
    assert tuple(whole.features["projector"].shape) == (6, 5)
    torch.testing.assert_close(
        joint.terms["invariance"],
        0.3 * VICReg().compute(*(model.projector(z) for z in embedded.embeddings)).invariance.detach(),
    )


@pytest.mark.parametrize("over", ["batch", "time"])
@pytest.mark.parametrize("shared", [True, False])
def test_without_pooling_the_regularizer_sees_tokens(over, shared):
    changes = {"ema": None} if shared else {}
    projector = Projector(16, 8, 5, num_layers=2)
    model = small_ijepa(regularizer=VCReg(over=over), regularizer_pool=None, projector=projector, **changes)
    batch = images()
    x = batch.views[0]
    context = model.encoder(x, model.draw_masks(model.encoder.grid((12, 16)), batch, 0).context)
    tokens = model.encoder(x) if shared else context
    rows = projector(tokens.reshape(-1, 16))
    loss = model.loss(batch, 0)
    expected = VCReg(over=over).compute(rows.reshape(6, -1, 5))
    torch.testing.assert_close(loss.terms["variance"], expected.variance.detach())
    torch.testing.assert_close(loss.terms["covariance"], expected.covariance.detach())
    torch.testing.assert_close(loss.features["projector"], rows.detach())
    torch.testing.assert_close(loss.features["encoder"], context.mean(1).detach())


def test_tokens_are_one_view():
    with pytest.raises(ValueError, match=r"VICReg: takes 2 view\(s\) of each sample, got 1"):
        small_ijepa(regularizer=VICReg(), regularizer_pool=None).loss(images(), 0)


def trained(regularizer, weight, steps=40, **changes):
    """Relative error of the predictions and rank of the features after training on one shared encoder."""
    torch.manual_seed(0)
    model = small_ijepa(
        ema=None, regularizer=regularizer, regularizer_weight=weight, target_norm=None, **changes
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        loss = model.loss(images(32, seed=step), step)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    features = model.encode(images(256, seed=999).views[0]).mean(1)
    return float(features.std(0).mean()), effective_rank(features)


@pytest.fixture(scope="module")
def dead():
    return trained(None, 1.0)[0]


@pytest.mark.parametrize(
    ("regularizer", "weight", "changes"),
    [
        (VCReg(), 1.0, {}),
        (VCReg(), 1.0, {"regularizer_pool": None}),
        (SIGReg(num_slices=32), 0.05, {}),
        (SIGReg(num_slices=32), 0.05, {"regularizer_pool": None}),
    ],
)
def test_a_regularizer_in_place_of_the_ema_keeps_the_shared_encoder_alive(regularizer, weight, changes, dead):
    alive, rank = trained(regularizer, weight, **changes)
    assert alive > 10 * dead
    assert rank > 8

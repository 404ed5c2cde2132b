"""LeJEPA as a learner: its loss in NumPy, both view sizes, every view trained, its count kept."""

import copy

import numpy as np
import pytest
import torch

from torchjepa import collapse
from torchjepa.models import JointEmbedding, LeJEPA
from torchjepa.nn import ConvEncoder, Projector, ViT
from torchjepa.types import Batch, Learner, SplitLearner


def vit(**changes):
    return ViT(**{"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "in_channels": 1} | changes)


def conv():
    return ConvEncoder(in_channels=1, widths=(8, 16), depths=(1, 1), strides=(2, 2))


def views(*sides, b=12):
    drawn = torch.Generator().manual_seed(0)
    return tuple(torch.randn(b, 1, side, side, generator=drawn) for side in sides)


def batch(*sides):
    made = views(*sides)
    return Batch(made, torch.arange(12), torch.full((12,), -1))


def learner(encoder, **options):
    return LeJEPA(encoder, Projector(16, 24, 8), **options)


def lejepa_by_hand(z, slices, weight, num_global):
    """The loss in float64 with a loop over views and knots; z `[v, n, e]`, slices `[e, s]`."""
    num_views, n, _ = z.shape
    centre = z[:num_global].mean(axis=0)
    invariance = np.mean([(z[v] - centre) ** 2 for v in range(num_views)])
    knots, total = np.linspace(0, 3, 17), 0.0
    for v in range(num_views):
        x = z[v] @ slices
        for k, t in enumerate(knots):
            w = (1 if k in (0, 16) else 2) * 3 / 16 * np.exp(-(t**2) / 2)
            real, imaginary = np.cos(t * x).mean(axis=0), np.sin(t * x).mean(axis=0)
            total += n * w * np.mean((real - np.exp(-(t**2) / 2)) ** 2 + imaginary**2) / num_views
    return (1 - weight) * invariance, weight * total


def test_it_is_a_learner_of_the_two_terms():
    model = learner(vit())
    assert isinstance(model, Learner)
    assert isinstance(model, SplitLearner)
    assert isinstance(model, JointEmbedding)
    loss = model.loss(batch(8, 8, 4, 4, 4), 0)
    assert set(loss.terms) == {"invariance", "sigreg"}
    assert loss.total.item() == pytest.approx(sum(term.item() for term in loss.terms.values()))
    assert model.scheduled(0) == {}
    assert model.deployable_encoder is model.encoder


@pytest.mark.parametrize("encoder", [vit, conv])
def test_the_loss_is_the_papers(encoder):
    model = learner(encoder(), regularizer=collapse.LeJEPA(weight=0.3)).double()
    made = [view.double() for view in views(8, 8, 4, 4, 4)]
    # Views of one size as one batch, all of them as one batch for the projector's norms.
    pooled = [
        model.encoder(torch.cat(part)).mean(dim=1).detach().chunk(len(part)) for part in (made[:2], made[2:])
    ]
    z = model.projector(torch.cat([*pooled[0], *pooled[1]])).detach().unflatten(0, (5, 12)).numpy()
    slices = model.regularizer.regularizer.slices(8).double().numpy()
    expected = lejepa_by_hand(z, slices, 0.3, 2)
    loss = model.loss(Batch(tuple(made), torch.arange(12), torch.full((12,), -1)), 0)
    assert [loss.terms[name].item() for name in ("invariance", "sigreg")] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("encoder", [vit, conv])
def test_every_view_and_every_parameter_has_a_gradient(encoder):
    model, made = learner(encoder()), batch(8, 8, 4, 4)
    for view in made.views:
        view.requires_grad_()
    model.loss(made, 0).total.backward()
    assert all(view.grad.abs().sum() > 0 for view in made.views)
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_positions_are_those_of_the_smaller_grid():
    encoder = vit(image_size=16)
    whole, small = encoder(torch.zeros(1, 1, 16, 16)), encoder(torch.zeros(1, 1, 8, 8))
    assert (whole.shape[1], small.shape[1]) == (16, 4)
    assert torch.equal(small, vit(image_size=8)(torch.zeros(1, 1, 8, 8)))
    with pytest.raises(ValueError, match="not a whole number of patches"):
        learner(encoder).loss(batch(16, 6), 0)


def test_slices_follow_the_count_and_the_count_is_kept():
    model = learner(vit())
    made = batch(8, 8)
    values = [model.loss(made, step).terms["sigreg"].item() for step in range(2)]
    assert values[0] != values[1]
    again = learner(vit())
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    assert again.loss(made, 2).total.item() == model.loss(made, 2).total.item()
    fresh = learner(vit())
    assert [fresh.loss(made, step).terms["sigreg"].item() for step in range(2)] == values


def test_learners_do_not_share_a_count():
    first, second = learner(vit()), learner(vit())
    first.loss(batch(8, 8), 0)
    assert second.regularizer.regularizer.num_calls == 0
    assert first.regularizer.regularizer.num_calls == 1


def test_accumulating_joins_what_the_projector_and_the_loss_see():
    model, made = learner(vit()), batch(8, 8, 4)
    whole = copy.deepcopy(model).loss(made, 0)
    parts = [
        model.embed(Batch(tuple(view[rows] for view in made.views), made.ids[rows], made.labels[rows]), 0)
        for rows in (slice(0, 5), slice(5, 12))
    ]
    joined = tuple(torch.cat(pair) for pair in zip(*(part.embeddings for part in parts), strict=True))
    assert model.joint_loss(joined, 0).total.item() == pytest.approx(whole.total.item(), rel=1e-5)

"""What the joint embedding promises as a learner, alone and on two ranks."""

import pytest
import torch

from tests.models.parts import images
from torchjepa import dist
from torchjepa.collapse import BarlowTwins, VCReg, VICReg
from torchjepa.models import JointEmbedding
from torchjepa.nn import ConvEncoder, MeanMaxPool, MeanPool, Projector
from torchjepa.testing import run_on_ranks
from torchjepa.types import Batch, Learner, SplitLearner


def small_model(regularizer=None, pool=None, **options):
    pool = pool or MeanPool()
    encoder = ConvEncoder(widths=(4, 8), depths=(0, 1))
    projector = Projector(pool.out_dim(8), 12, 6)
    return JointEmbedding(encoder, projector, regularizer=regularizer or VICReg(), pool=pool, **options)


@pytest.mark.parametrize("regularizer", [VICReg(), BarlowTwins()])
@pytest.mark.parametrize("pool", [MeanPool(), MeanMaxPool()])
def test_loss_equals_the_formula(regularizer, pool):
    model, batch = small_model(regularizer, pool), images(num_views=2)
    loss = model.loss(batch, 0)
    pooled = [pool(model.encoder(view)) for view in batch.views]
    expected = regularizer.loss(*(model.projector(z) for z in pooled))
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(sum(loss.terms.values()), expected.detach())
    torch.testing.assert_close(loss.features["encoder"], pooled[0].detach())
    assert not loss.features["encoder"].requires_grad


def test_both_views_give_gradient():
    model, batch = small_model(), images(num_views=2)
    views = [view.requires_grad_() for view in batch.views]
    model.loss(batch, 0).total.backward()
    assert all(view.grad.abs().sum() > 0 for view in views)
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_the_regularizer_refuses_another_number_of_views():
    with pytest.raises(ValueError, match=r"VICReg: takes 2 view\(s\) of each sample, got 1"):
        small_model().loss(images(), 0)
    with pytest.raises(ValueError, match="at least one view of each sample, got none"):
        small_model().loss(images(num_views=0), 0)


def views_of_two_sizes():
    large, small = images(num_views=2), images(size=(8, 8), num_views=3, seed=1)
    views = (small.views[0], *large.views, *small.views[1:])
    return Batch(views, large.ids, large.labels)


@pytest.mark.parametrize("joint_views", [False, True])
def test_any_number_of_views_of_any_size(joint_views):
    regularizer, batch = VCReg(), views_of_two_sizes()
    model = small_model(regularizer, joint_views=joint_views)
    if joint_views:
        small = model.encoder(torch.cat([batch.views[0], *batch.views[3:]])).mean(1).chunk(3)
        large = model.encoder(torch.cat(batch.views[1:3])).mean(1).chunk(2)
        pooled = [small[0], *large, *small[1:]]
        projected = model.projector(torch.cat(pooled)).chunk(5)
    else:
        pooled = [model.encoder(view).mean(1) for view in batch.views]
        projected = [model.projector(each) for each in pooled]
    loss = model.loss(batch, 0)
    torch.testing.assert_close(loss.total, regularizer.loss(*projected))
    torch.testing.assert_close(loss.features["encoder"], pooled[0].detach())
    torch.testing.assert_close(loss.features["projector"], projected[0].detach())
    torch.testing.assert_close(loss.features["tokens"].mean(1), pooled[0].detach())


def test_the_loss_is_the_joint_loss_of_what_is_embedded():
    model, batch = small_model(), images(num_views=2)
    assert isinstance(model, SplitLearner)
    embedded = model.embed(batch, 0)
    assert [tuple(each.shape) for each in embedded.embeddings] == [(6, 8), (6, 8)]
    assert all(each.requires_grad for each in embedded.embeddings)
    torch.testing.assert_close(model.joint_loss(embedded.embeddings, 0).total, model.loss(batch, 0).total)


def test_encode_uses_running_statistics_and_gives_the_mode_back():
    model, x = small_model(), images().views[0]
    running = model.encoder.stages[0][1].running_mean.clone()
    tokens = model.encode(x)
    assert tokens.shape == (6, 48, 8)
    assert model.encoder.training
    assert torch.equal(running, model.encoder.stages[0][1].running_mean)
    torch.testing.assert_close(model.encode(x[:1]), tokens[:1])


def test_it_is_a_learner_without_schedule():
    model = small_model()
    assert isinstance(model, Learner)
    assert model.scheduled(3) == {}
    assert model.after_step(3) is None


def gradients(rows):
    whole, model = images(num_views=2), small_model()
    part = Batch(tuple(view[rows] for view in whole.views), whole.ids[rows], whole.labels[rows])
    loss = model.loss(part, 0)
    loss.total.backward()
    return loss.total.detach(), [p.grad for p in model.parameters()], list(model.buffers())


def gradients_of_my_rows():
    return gradients(slice(0, 2) if dist.rank() == 0 else slice(2, 6))


def test_two_ranks_of_unequal_batches_are_one_process():
    total, expected, buffers = gradients(slice(0, 6))
    ranks = run_on_ranks(gradients_of_my_rows, 2)
    for rank in ranks:
        torch.testing.assert_close(rank[0], total)
        torch.testing.assert_close(rank[2], buffers)
    # Averaged over ranks, as DDP does.
    for first, second, gradient in zip(ranks[0][1], ranks[1][1], expected):
        torch.testing.assert_close((first + second) / 2, gradient, atol=1e-4, rtol=1e-3)

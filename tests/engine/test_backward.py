"""What one update does on its way to the gradients: passes, buffers, draws, precision, and what it refuses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.engine import joined, tiny
from torchjepa import dist
from torchjepa.collapse import VICReg
from torchjepa.engine.accumulate import Backward
from torchjepa.models import JointEmbedding
from torchjepa.nn import ConvEncoder, Projector
from torchjepa.testing import run_on_ranks
from torchjepa.types import Batch, Embedded, Loss


class BareFabric:
    """One CPU and a loss scale, which is all that an update wants of fabric."""

    device, is_global_zero = torch.device("cpu"), True

    def __init__(self, scale: float = 1.0, precision: Any = nullcontext) -> None:
        self.scale, self.precision = scale, precision

    def setup_module(self, module: nn.Module) -> Callable[..., Any]:
        def forward(job: Any) -> Tensor:
            with self.precision():
                return module(job)

        return forward

    def no_backward_sync(self, module: Any, enabled: bool) -> Any:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        (self.scale * loss).backward()


class Spied(JointEmbedding):
    """Notes what it embeds, and whether with graph."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__(*parts, regularizer=VICReg())  # type: ignore[arg-type]
        self.embedded: list[tuple[int, bool, Tensor]] = []
        self.num_joint = 0

    def embed(self, batch: Batch, step: int) -> Embedded:
        result = super().embed(batch, step)
        z = result.embeddings[0]
        self.embedded.append((batch.row_start, z.requires_grad, z.detach()))
        return result

    def joint_loss(self, embeddings: tuple[Tensor, ...], step: int) -> Loss:
        self.num_joint += 1
        return super().joint_loss(embeddings, step)


def spied(dropout: float = 0.0) -> Spied:
    encoder = ConvEncoder(in_channels=1, widths=(4,), depths=(1,), strides=(2,), seed=0)
    return Spied(DroppedEncoder(encoder, dropout), Projector(4, 6, 5, num_layers=2))


class DroppedEncoder(nn.Module):
    def __init__(self, encoder: ConvEncoder, dropout: float) -> None:
        super().__init__()
        self.encoder, self.dropout = encoder, nn.Dropout(dropout)
        self.embed_dim, self.grid = encoder.embed_dim, encoder.grid

    def forward(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        return self.dropout(self.encoder(x, ids))


def pictures(num: int) -> list[Batch]:
    x = torch.randn(num, 2, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x += torch.arange(num).view(-1, 1, 1, 1, 1, 1)
    none = torch.full((2,), -1)
    return [Batch(tuple(views), none, none, 2 * place, 2 * num) for place, views in enumerate(x)]


def update(learner: nn.Module, batches: list[Batch], fabric: BareFabric | None = None, step: int = 5) -> Any:
    backward = Backward(fabric or BareFabric(), learner, tiny.settings(accumulate=len(batches)))  # type: ignore[arg-type]
    return backward(iter(batches), step)


def gradients(learner: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in learner.parameters() if parameter.grad is not None]


def test_every_micro_batch_but_the_first_is_embedded_twice() -> None:
    learner = spied()
    update(learner, pictures(3))
    assert [entry[:2] for entry in learner.embedded] == [
        (0, True),
        (2, False),
        (4, False),
        (2, True),
        (4, True),
    ]
    assert learner.num_joint == 1


def test_without_embeddings_every_micro_batch_is_embedded_once() -> None:
    learner, passes = joined.build("plain", "float32"), []
    learner.predictor.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    update(learner, pictures(3))
    assert passes == [True] * 3


def test_both_passes_draw_the_same_and_other_micro_batches_something_else() -> None:
    learner = spied(dropout=0.5)
    batches = pictures(3)
    batches[2] = replace(batches[1], row_start=4)
    update(learner, batches)
    _, second, third, second_again, third_again = (z for _, _, z in learner.embedded)
    assert torch.equal(second, second_again)
    assert torch.equal(third, third_again)
    assert not torch.equal(second, third)


def test_running_statistics_move_once() -> None:
    learner, twin = spied(), spied()
    twin.load_state_dict(learner.state_dict())
    batches = pictures(3)
    own = dict(learner.named_buffers())
    update(learner, batches)
    with torch.no_grad():
        pooled = [JointEmbedding.embed(twin, batch, 0).embeddings for batch in batches]
        twin.joint_loss(tuple(map(torch.cat, zip(*pooled))), 0)
    for name, buffer in learner.named_buffers():
        assert buffer is own[name]
        torch.testing.assert_close(buffer, twin.get_buffer(name))


def statistics_of_a_rank() -> list[Tensor]:
    learner = spied()
    learner.projector[1] = nn.BatchNorm1d(6)  # torch's, of this rank's samples alone
    update(learner, [replace(batch, views=batch.views[:: 1 - 2 * dist.rank()]) for batch in pictures(2)])
    return list(learner.buffers())


def test_buffers_that_ranks_move_apart_are_those_of_the_first_again() -> None:
    first, second = run_on_ranks(statistics_of_a_rank, 2)
    for ours, theirs in zip(first, second, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["views", "predicted"])
def test_a_scaled_loss_scales_gradients_once(kind: str) -> None:
    plain, scaled, batches = joined.build(kind, "float32"), joined.build(kind, "float32"), pictures(3)
    update(plain, batches)
    update(scaled, batches, BareFabric(scale=1024.0))
    for ours, expected in zip(gradients(scaled), gradients(plain), strict=True):
        torch.testing.assert_close(ours, 1024 * expected, rtol=1e-5, atol=1e-3)


def test_embedding_and_joint_loss_are_under_autocast() -> None:
    learner, dtypes = spied(), []
    learner.projector[0].register_forward_hook(lambda *call: dtypes.append(call[-1].dtype))
    bfloat16 = BareFabric(precision=lambda: torch.autocast("cpu", torch.bfloat16))
    update(learner, pictures(2), bfloat16)
    assert {z.dtype for _, _, z in learner.embedded} == {torch.bfloat16}
    assert dtypes == [torch.bfloat16] * 2
    assert all(gradient.dtype == torch.float32 for gradient in gradients(learner))


def test_the_figures_are_those_of_the_whole_batch() -> None:
    learner, batches = joined.build("predicted", "float32"), pictures(3)
    local = [learner.embed(batch, 5).local.total.item() for batch in batches]
    loss, means = update(learner, batches)
    assert means["loss/prediction"].item() == pytest.approx(sum(local) / 3, rel=1e-5)
    parts = [value.item() for name, value in means.items() if name != "loss"]
    assert means["loss"].item() == pytest.approx(sum(parts), rel=1e-5)
    assert loss.total.item() == means["loss"].item()
    assert set(loss.terms) == {"prediction", "invariance", "variance", "covariance"}
    # Two views of each of six samples.
    assert len(loss.features["projector"]) == 12
    assert len(loss.features["tokens"]) == len(loss.features["encoder"]) == 4


def test_a_frozen_encoder_leaves_its_projector_to_train() -> None:
    learner, other, batches = joined.build("views"), joined.build("views"), pictures(2)
    batches = [replace(batch, views=tuple(view.double() for view in batch.views)) for batch in batches]
    learner.encoder.requires_grad_(False)
    update(learner, batches)
    update(other, batches)
    assert all(parameter.grad is None for parameter in learner.encoder.parameters())
    for ours, expected in zip(learner.projector.parameters(), other.projector.parameters()):
        torch.testing.assert_close(ours.grad, expected.grad)


def test_a_loss_of_its_own_is_not_passed_over() -> None:
    class Own(Spied):
        def loss(self, batch: Batch, step: int) -> Loss:
            inherited = super().loss(batch, step)
            return Loss(2 * inherited.total, inherited.terms)

    learner = Own(*spied().children())
    with pytest.warns(UserWarning, match="Own does not split its loss .* one micro-batch at a time"):
        update(learner, pictures(2))
    assert learner.num_joint == 2
    with pytest.warns(UserWarning, match="TinyLearner does not split its loss"):
        Backward(BareFabric(), tiny.TinyLearner(), tiny.settings(accumulate=2))  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Backward(BareFabric(), tiny.TinyLearner(), tiny.settings())  # type: ignore[arg-type]
        Backward(BareFabric(), spied(), tiny.settings(accumulate=2))  # type: ignore[arg-type]


def test_mistakes_are_named() -> None:
    class Uneven(Spied):
        def embed(self, batch: Batch, step: int) -> Embedded:
            embedded = super().embed(batch, step)
            return Embedded(embedded.embeddings[: 2 if batch.row_start else 1], embedded.local)

    class Wide(Spied):
        def joint_loss(self, embeddings: tuple[Tensor, ...], step: int) -> Loss:
            return Loss(embeddings[0])

    with pytest.raises(ValueError, match=r"as many embeddings, got \[1, 2\]"):
        update(Uneven(*spied().children()), pictures(2))
    with pytest.raises(ValueError, match=r"Wide.* a total of shape \[4, 4\]; expected a scalar"):
        update(Wide(*spied().children()), pictures(2))
    with pytest.raises(ValueError, match="The batches ended at step 5"):
        Backward(BareFabric(), spied(), tiny.settings(accumulate=2))(iter(pictures(1)), 5)  # type: ignore[arg-type]

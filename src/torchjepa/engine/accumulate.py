"""The gradients of one update over micro-batches, those of the joined batch where a learner couples samples.

For a learner that splits its loss, L = mean_i local(x_i) + joint(e(x_1), ..., e(x_m)) over micro-batches x_i with
embeddings e (GradCache, Gao et al. 2021): embed every micro-batch without graph; take the joint loss once, with the
embeddings as leaves, and its gradient g_i with respect to those of x_i; embed again, with graph, and go backward from
local(x_i) / m + <e(x_i), g_i>. The first micro-batch keeps its graph and is embedded once, so the price is m - 1 more
forward passes, and memory for the inputs of m micro-batches but the activations of one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchjepa import rng
from torchjepa.collapse.accumulate import inner, joint_gradients
from torchjepa.engine.buckets import average_gradients, broadcast_from_first
from torchjepa.engine.settings import TrainSettings
from torchjepa.engine.sharding import is_sharded
from torchjepa.engine.watch import FirstBadStep
from torchjepa.types import Batch, Embedded, Loss, SplitLearner

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class _Job:
    """A call of the learner on its way through the wrapped module, and what it gave on the way back.

    Neither a dataclass nor a container: fabric would copy those and cast the tensors inside.
    """

    def __init__(self, call: Callable[[Any], Loss | Embedded]) -> None:
        self.call = call
        self.embeddings: tuple[Tensor, ...] = ()
        self.loss: Loss

    def run(self, learner: nn.Module) -> Tensor:
        result = self.call(learner)
        if isinstance(result, Embedded):
            self.embeddings, result = result.embeddings, result.local or Loss(_zero_like(result.embeddings))
        if result.total.ndim:
            name, shape = type(learner).__name__, list(result.total.shape)
            raise ValueError(f"{name}.loss gave a total of shape {shape}; expected a scalar.")
        self.loss = result
        return result.total


class _JobModule(nn.Module):
    """The learner's calls as forward passes, so that DDP, FSDP and autocast are around them."""

    def __init__(self, learner: nn.Module) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, job: _Job) -> tuple[Tensor, ...]:
        # FSDP watches the gradients of what comes out, to gather weights in time for the backward pass.
        return job.run(self.learner), *job.embeddings


class Backward:
    """Forward and backward passes of one update; leaves the gradients on the learner's parameters.

    Args:
        fabric: launched.
        learner: an `nn.Module` and a `types.Learner`.
        settings: how to train.

    Attributes:
        module: the learner as fabric has wrapped it.
        bad: the first step with a loss that is not finite.
    """

    def __init__(self, fabric: Fabric, learner: nn.Module, settings: TrainSettings) -> None:
        self._fabric = fabric
        self._learner = learner
        self._seed = settings.seed
        self._num_micro = settings.accumulate
        self._joins = settings.accumulate > 1 and _splits(learner)
        self.bad = FirstBadStep(fabric.device)
        self.module = fabric.setup_module(_JobModule(learner))
        self._is_sharded = any(map(is_sharded, learner.parameters()))
        broadcast_from_first(learner.buffers())  # DDP makes only the parameters equal at the start
        if settings.accumulate > 1 and not self._joins and fabric.is_global_zero:
            warnings.warn(
                f"{type(learner).__name__} does not split its loss (types.SplitLearner), so with "
                f"accumulate={settings.accumulate} whatever couples samples, a regularizer say, sees one "
                "micro-batch at a time.",
                stacklevel=2,
            )

    def __call__(self, stream: Iterator[Batch], step: int) -> tuple[Loss, dict[str, Tensor]]:
        """Take the micro-batches of one update.

        Args:
            stream: the micro-batches of this process.
            step: which update, from 0.

        Returns:
            The loss with the features of the last micro-batch (those of a joint loss: of all); and the means by
            name of loss and terms over this process' micro-batches.

        Raises:
            ValueError: the stream has ended, or the learner gave something else than it should.
        """
        if not self._joins:
            return self._one_by_one(stream, step, [])
        batch = _next_batch(stream, step)
        with self._no_sync():
            job, total = self._embed(batch, step)
            if job.embeddings:
                return self._joined(batch, job, total, stream, step)
            self._fabric.backward(total / self._num_micro)
        return self._one_by_one(stream, step, [_without_features(job.loss)])

    def _one_by_one(
        self, stream: Iterator[Batch], step: int, losses: list[Loss]
    ) -> tuple[Loss, dict[str, Tensor]]:
        """The micro-batches after `losses`, which do not know of each other; DDP averages in the last, FSDP in each."""
        for micro in range(len(losses), self._num_micro):
            batch, is_last = _next_batch(stream, step), micro == self._num_micro - 1
            job = _Job(lambda learner, batch=batch: learner.loss(batch, step))
            with self._no_sync(not is_last):
                total = self._run(job, step, "loss", batch.row_start)
                self._fabric.backward(total / self._num_micro)
            losses.append(job.loss if is_last else _without_features(job.loss))
        return losses[-1], _mean(losses)

    def _joined(
        self, first: Batch, job: _Job, total: Tensor, stream: Iterator[Batch], step: int
    ) -> tuple[Loss, dict[str, Tensor]]:
        """All micro-batches, which meet in the joint loss; `job` and `total` are those of the first."""
        others = [_next_batch(stream, step) for _ in range(self._num_micro - 1)]
        with torch.no_grad(), _scratch_buffers(self._learner):
            later = [self._embed(batch, step)[0].embeddings for batch in others]
        joint, gradients = self._joint_backward([job.embeddings, *later], step, first.row_start)
        losses = [self._backward_from(job, total, gradients[0])]
        for batch, gradient in zip(others, gradients[1:]):
            losses[-1] = _without_features(losses[-1])
            losses.append(self._backward_from(*self._embed(batch, step), gradient))
        if not self._is_sharded:
            # Outside DDP's reducer, which wants every parameter in the graph of one backward pass.
            average_gradients(self._learner.parameters())
        broadcast_from_first(self._learner.buffers())
        local, joint_means = _mean(losses), _mean([joint])
        means = {**local, **joint_means, "loss": local["loss"] + joint_means["loss"]}
        features = {**losses[-1].features, **joint.features}
        return Loss(means["loss"], {**losses[-1].terms, **joint.terms}, features), means

    def _joint_backward(
        self, embeddings: Sequence[tuple[Tensor, ...]], step: int, row_start: int
    ) -> tuple[Loss, list[tuple[Tensor, ...]]]:
        """The joint loss, and its gradient with respect to the embeddings of every micro-batch."""
        jobs: list[_Job] = []

        def joint_loss(leaves: tuple[Tensor, ...]) -> Tensor:
            jobs.append(_Job(lambda learner: learner.joint_loss(leaves, step)))
            return self._run(jobs[0], step, "joint loss", row_start)

        gradients = joint_gradients(joint_loss, embeddings, self._fabric.backward)
        return jobs[0].loss, gradients

    def _backward_from(self, job: _Job, total: Tensor, gradients: tuple[Tensor, ...]) -> Loss:
        """Backward from a micro-batch's share of the mean local loss and from its embeddings."""
        total = total / self._num_micro + inner(job.embeddings, gradients)
        if total.requires_grad:  # not where only a projector is trained
            self._fabric.backward(total)
        return job.loss

    def _embed(self, batch: Batch, step: int) -> tuple[_Job, Tensor]:
        job = _Job(lambda learner: learner.embed(batch, step))
        return job, self._run(job, step, "loss", batch.row_start)

    def _run(self, job: _Job, step: int, purpose: str, row_start: int) -> Tensor:
        # Dropout and the like draw from torch's global generator; keyed, they repeat after a resume, and when a
        # micro-batch is embedded again.
        torch.manual_seed(rng.derive_seed(self._seed, purpose, step, row_start))
        total, *_ = self.module(job)
        self.bad.add(total, step)
        return total

    def _no_sync(self, enabled: bool = True) -> AbstractContextManager[None]:
        if self._is_sharded:  # gradients kept back for later would be whole ones, on every process
            return nullcontext()
        return self._fabric.no_backward_sync(self.module, enabled=enabled)


def _splits(learner: nn.Module) -> bool:
    """Whether the learner splits its loss, and no subclass has given it another `loss` since."""
    if not isinstance(learner, SplitLearner):
        return False
    classes = type(learner).__mro__
    loss, embed, joint_loss = (
        next((place for place, each in enumerate(classes) if name in vars(each)), -1)
        for name in ("loss", "embed", "joint_loss")
    )
    return loss >= min(embed, joint_loss)


@contextmanager
def _scratch_buffers(module: nn.Module) -> Iterator[None]:
    """Let forward passes move copies of the buffers, running statistics say; the buffers stay as they are.

    Swapped rather than restored: a graph may have saved the buffers themselves.
    """
    places = [
        (part, name, buffer)
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False, remove_duplicate=False)
    ]
    copies = {id(buffer): buffer.clone() for _, _, buffer in places}
    try:
        for part, name, buffer in places:
            setattr(part, name, copies[id(buffer)])
        yield
    finally:
        for part, name, buffer in places:
            setattr(part, name, buffer)


def _next_batch(stream: Iterator[Batch], step: int) -> Batch:
    try:
        return next(stream)
    except StopIteration:
        raise ValueError(
            f"The batches ended at step {step}; give one for every item of the sampler."
        ) from None


def _zero_like(embeddings: tuple[Tensor, ...]) -> Tensor:
    return torch.zeros((), device=embeddings[0].device if embeddings else None)


def _without_features(loss: Loss) -> Loss:
    """What the figures need; features of all but the last micro-batch would only hold memory."""
    return Loss(loss.total.detach(), loss.terms)


def _mean(losses: Sequence[Loss]) -> dict[str, Tensor]:
    named = [
        {"loss": loss.total.detach(), **{f"loss/{name}": term.detach() for name, term in loss.terms.items()}}
        for loss in losses
    ]
    if len(named) == 1:
        return named[0]
    return {name: torch.stack([each[name] for each in named]).mean(0) for name in named[0]}

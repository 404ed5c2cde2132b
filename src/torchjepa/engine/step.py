"""One optimizer update: micro-batches forward and backward, AdamW, then what the learner does after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from torchjepa import dist, rng
from torchjepa.engine.optim import adamw, set_schedules
from torchjepa.engine.settings import TrainSettings
from torchjepa.engine.watch import FirstBadStep
from torchjepa.types import Batch, Learner, Loss

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Update:
    """What one update gave, still on the device.

    Args:
        loss: of the last micro-batch.
        means: loss and terms, each the mean over this process' micro-batches.
        grad_norm: before clipping, where there is clipping.
    """

    loss: Loss
    means: dict[str, Tensor]
    grad_norm: Tensor | None


class _Job:
    """A micro-batch on its way through the wrapped module, and its loss on the way back.

    Neither a dataclass nor a container: fabric would copy those and cast the tensors inside.
    """

    def __init__(self, batch: Batch, step: int) -> None:
        self.batch = batch
        self.step = step
        self.loss: Loss | None = None


class _LossModule(nn.Module):
    """`learner.loss` as a forward pass, so that DDP and autocast are around it on any number of devices."""

    def __init__(self, learner: nn.Module) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, job: _Job) -> Tensor:
        loss = cast(Learner, self.learner).loss(job.batch, job.step)
        if loss.total.ndim:
            name, shape = type(self.learner).__name__, list(loss.total.shape)
            raise ValueError(f"{name}.loss gave a total of shape {shape}; expected a scalar.")
        job.loss = loss
        return loss.total


class Stepper:
    """A learner made ready for its devices, with its optimizer.

    Args:
        fabric: launched.
        learner: an `nn.Module` and a `types.Learner`; moved to the device in place.
        settings: how to train.
    """

    def __init__(self, fabric: Fabric, learner: nn.Module, settings: TrainSettings) -> None:
        self._fabric = fabric
        self._learner = cast(Learner, learner)
        self._settings = settings
        self.bad = FirstBadStep(fabric.device)
        learner.train()
        if settings.compile:
            for child in learner.children():
                child.compile()
        self._module = fabric.setup_module(_LossModule(learner))
        if dist.is_distributed():
            # DDP makes only the parameters equal at the start.
            for buffer in learner.buffers():
                torch.distributed.broadcast(buffer, 0)
        self._adamw = adamw(
            learner,
            betas=settings.betas,
            eps=settings.eps,
            # Fused AdamW unscales float16 gradients itself, too late for clipping.
            fused=settings.precision != "16-mixed",
            device=fabric.device,
        )
        self._optimizer = cast(torch.optim.Optimizer, fabric.setup_optimizers(self._adamw))

    def update(self, stream: Iterator[Batch], step: int) -> Update:
        """Do one update.

        Args:
            stream: the micro-batches of this process.
            step: which update, from 0.

        Raises:
            ValueError: the stream has ended.
        """
        settings = self._settings
        set_schedules(self._adamw, settings.learning_rate(step), settings.weight_decay(step))
        losses = [self._backward(stream, step, micro) for micro in range(settings.accumulate)]
        grad_norm = self._clip()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._learner.after_step(step)
        return Update(losses[-1], _mean([_named(loss) for loss in losses]), grad_norm)

    def _backward(self, stream: Iterator[Batch], step: int, micro: int) -> Loss:
        job = _Job(_next_batch(stream, step), step)
        # Dropout and the like draw from torch's global generator; keyed, they repeat after a resume as well.
        torch.manual_seed(rng.derive_seed(self._settings.seed, "loss", step, job.batch.row_start))
        num_micro = self._settings.accumulate
        with self._fabric.no_backward_sync(self._module, enabled=micro < num_micro - 1):
            total = self._module(job)
            self._fabric.backward(total / num_micro)
        self.bad.add(total, step)
        loss = cast(Loss, job.loss)
        # Features of all but the last micro-batch would only hold memory.
        return loss if micro == num_micro - 1 else Loss(loss.total.detach(), loss.terms)

    def _clip(self) -> Tensor | None:
        if self._settings.clip_grad is None:
            return None
        return self._fabric.clip_gradients(
            self._module, self._optimizer, max_norm=self._settings.clip_grad, error_if_nonfinite=False
        )

    def state(self) -> dict[str, Any]:
        """What `load_state` needs besides the learner's tensors."""
        return {
            "optimizer": self._adamw.state_dict(),
            "precision": self._fabric.strategy.precision.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up the optimizer where `state` left it.

        Args:
            state: made by `state`.
        """
        self._adamw.load_state_dict(state["optimizer"])
        self._fabric.strategy.precision.load_state_dict(state["precision"])

    def state_tensors(self) -> list[Tensor]:
        """Every tensor that a checkpoint would hold."""
        learner = cast(nn.Module, self._learner)
        moments = [value for state in self._adamw.state.values() for value in state.values()]
        return [value for value in (*learner.state_dict().values(), *moments) if isinstance(value, Tensor)]


def _next_batch(stream: Iterator[Batch], step: int) -> Batch:
    try:
        return next(stream)
    except StopIteration:
        raise ValueError(
            f"The batches ended at step {step}; give one for every item of the sampler."
        ) from None


def _named(loss: Loss) -> dict[str, Tensor]:
    terms = {f"loss/{name}": value.detach() for name, value in loss.terms.items()}
    return {"loss": loss.total.detach(), **terms}


def _mean(named: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(named) == 1:
        return named[0]
    return {name: torch.stack([each[name] for each in named]).mean(0) for name in named[0]}

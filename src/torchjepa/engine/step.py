"""One optimizer update: micro-batches forward and backward, AdamW, then what the learner does after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from torchjepa.engine.accumulate import Backward
from torchjepa.engine.optim import adamw, set_schedules
from torchjepa.engine.settings import TrainSettings
from torchjepa.engine.watch import FirstBadStep
from torchjepa.nn import recompute_activations
from torchjepa.types import Batch, Learner, Loss

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Update:
    """What one update gave, still on the device.

    Args:
        loss: of the last micro-batch; where the learner couples micro-batches, of all, and only the features of
            what it calls local are those of the last.
        means: loss and terms, each the mean over this process' micro-batches.
        grad_norm: before clipping, where there is clipping.
    """

    loss: Loss
    means: dict[str, Tensor]
    grad_norm: Tensor | None


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
        learner.train()
        if settings.recompute_activations:
            recompute_activations(learner)
        if settings.compile:
            for child in learner.children():
                child.compile()
        self._backward = Backward(fabric, learner, settings)
        self._adamw = adamw(
            learner,
            betas=settings.betas,
            eps=settings.eps,
            # Fused AdamW unscales float16 gradients itself, too late for clipping.
            fused=settings.precision != "16-mixed",
            device=fabric.device,
        )
        self._optimizer = cast(torch.optim.Optimizer, fabric.setup_optimizers(self._adamw))

    @property
    def bad(self) -> FirstBadStep:
        """The first step with a loss that is not finite."""
        return self._backward.bad

    def update(self, stream: Iterator[Batch], step: int) -> Update:
        """Do one update.

        Args:
            stream: the micro-batches of this process.
            step: which update, from 0.

        Raises:
            ValueError: the stream has ended.
            NonFiniteError: a part of the learner refused NaN or infinity.
        """
        settings = self._settings
        set_schedules(self._adamw, settings.learning_rate(step), settings.weight_decay(step))
        loss, means = self._backward(stream, step)
        grad_norm = self._clip()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._learner.after_step(step)
        return Update(loss, means, grad_norm)

    def _clip(self) -> Tensor | None:
        if self._settings.clip_grad is None:
            return None
        return self._fabric.clip_gradients(
            self._backward.module,
            self._optimizer,
            max_norm=self._settings.clip_grad,
            error_if_nonfinite=False,
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

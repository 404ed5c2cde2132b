"""One optimizer update: micro-batches forward and backward, AdamW, then what the learner does after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from torchjepa.engine.accumulate import Backward
from torchjepa.engine.compiling import CompiledRegions
from torchjepa.engine.optim import adamw, set_schedules
from torchjepa.engine.settings import TrainSettings
from torchjepa.engine.sharding import Twin, local, shard_like, whole
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
        learner: an `nn.Module` and a `types.Learner`; moved to the device in place. With strategy "fsdp" on
            several processes a twin of it is trained, and it has weights only when it is given them.
        settings: how to train.

    Attributes:
        trained: the learner, or the twin.
    """

    def __init__(self, fabric: Fabric, learner: nn.Module, settings: TrainSettings) -> None:
        self._fabric = fabric
        self._settings = settings
        learner.train()
        if settings.recompute_activations:
            recompute_activations(learner)
        sharded = settings.strategy == "fsdp" and fabric.world_size > 1
        self._twin = Twin(learner, fabric.is_global_zero) if sharded else None
        self.trained = learner if self._twin is None else self._twin.module
        self._backward = Backward(fabric, self.trained, settings)
        self._compiled = CompiledRegions(self.trained, fabric.device) if settings.compile else None
        self._adamw = adamw(
            self.trained,
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
        with nullcontext() if self._compiled is None else self._compiled.active():
            loss, means = self._backward(stream, step)
        grad_norm = self._clip()
        self._optimizer.step()
        self._optimizer.zero_grad()
        cast(Learner, self.trained).after_step(step)
        return Update(loss, means, grad_norm)

    def _clip(self) -> Tensor | None:
        if self._settings.clip_grad is None:
            return None
        norm = self._fabric.clip_gradients(
            self._backward.module,
            self._optimizer,
            max_norm=self._settings.clip_grad,
            error_if_nonfinite=False,
        )
        return None if norm is None else whole(norm)

    def weights(self) -> AbstractContextManager[None]:
        """The main process' learner has its weights for a while; all processes must ask."""
        return nullcontext() if self._twin is None else self._twin.filled(self._fabric.device)

    def hand_back(self) -> None:
        """The main process' learner has its weights for good; all processes must ask."""
        if self._twin is not None:
            self._twin.fill(self._fabric.device)

    def state(self) -> dict[str, Any]:
        """What `load_state` needs besides the learner's tensors."""
        return {
            "optimizer": self._adamw.state_dict(),
            "precision": self._fabric.strategy.precision.state_dict(),
        }

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take up learner and optimizer as a checkpoint has them; each process cuts out its part.

        Args:
            tensors: the learner's, whole.
            state: made by `state`, its tensors whole.
        """
        current = self.trained.state_dict()
        self.trained.load_state_dict({name: shard_like(tensors[name], current[name]) for name in current})
        optimizer = dict(state["optimizer"])
        parameters = [each for group in self._adamw.param_groups for each in group["params"]]
        optimizer["state"] = {
            index: {name: _part(value, parameters[index]) for name, value in moments.items()}
            for index, moments in optimizer["state"].items()
        }
        self._adamw.load_state_dict(optimizer)
        self._fabric.strategy.precision.load_state_dict(state["precision"])

    def state_tensors(self) -> list[Tensor]:
        """What this process holds of every tensor that a checkpoint would."""
        moments = [value for state in self._adamw.state.values() for value in state.values()]
        values = (*self.trained.state_dict().values(), *moments)
        return [local(value) for value in values if isinstance(value, Tensor)]


def _part(value: Any, parameter: Tensor) -> Any:
    """What this process keeps of an entry of the optimizer's state; a count of steps is not cut."""
    if not isinstance(value, Tensor):
        return value
    part = shard_like(value, parameter) if value.shape == parameter.shape else value
    return part.clone()  # the optimizer would keep the file's own memory

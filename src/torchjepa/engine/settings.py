"""What a training run is asked to do: the settings, checked when they are made."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Schedule = Callable[[int], float]
PRECISIONS = ("32", "bf16-mixed", "16-mixed")
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "fsdp")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How to train: the batch, the optimizer, the devices, and when to log and to save.

    Args:
        total_steps: number of optimizer updates.
        global_batch_size: samples of one update, over all devices, nodes and micro-batches.
        learning_rate: the learning rate of a step (0-based), a pure function such as
            `schedules.WarmupCosine`.
        weight_decay: the decoupled weight decay of a step, a pure function; biases and other tensors of at
            most one dimension get none (I-JEPA, official code).
        seed: seed of everything drawn in the run.
        accumulate: micro-batches of one update; their activations need memory one after the other. A learner
            that splits its loss (`types.SplitLearner`) gets the gradient of the whole batch for
            `accumulate - 1` more forward passes, one micro-batch each, and the inputs of all micro-batches in
            memory; batch norms before the split (in an encoder) still see one micro-batch at a time.
        betas: AdamW's decay rates of the first and second moment (torch's defaults, as official I-JEPA).
        eps: AdamW's term in the denominator.
        clip_grad: the gradient's norm over all parameters is cut down to this; `None` leaves it as it is
            (official I-JEPA).
        precision: "32", "bf16-mixed", or on a GPU "16-mixed".
        accelerator: "auto" takes the best device present; or "cpu", "gpu", "cuda", "mps".
        devices: devices of this node, or "auto" for all of them. Under torchrun its --nproc-per-node
            decides and this may stay 1.
        num_nodes: machines that take part.
        strategy: what several processes do: "auto" and "ddp" copy the learner to each;
            "ddp_find_unused_parameters_true" does so for a learner whose loss leaves some trainable parameters
            out; "fsdp" spreads weights, gradients and optimizer state over them (FSDP2). See docs/scaling.md.
        compile: run transformer blocks and what else stands in an `nn.ModuleList` through torch.compile while training,
            and whole the children of the learner that have none; see `engine.compiling`. On a CPU that needs a C++
            compiler.
        recompute_activations: activation checkpointing, see `nn.recompute_activations`.
        log_every: a row of figures every so many steps, besides the first and the last.
        checkpoint_every: a checkpoint every so many steps, besides the last.
        keep_checkpoints: number of newest checkpoints that are kept.

    Raises:
        ValueError: a value outside its range, named.
    """

    total_steps: int
    global_batch_size: int
    learning_rate: Schedule
    weight_decay: Schedule
    seed: int = 0
    accumulate: int = 1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_grad: float | None = None
    precision: str = "32"
    accelerator: str = "auto"
    devices: int | Literal["auto"] = 1
    num_nodes: int = 1
    strategy: str = "auto"
    compile: bool = False
    recompute_activations: bool = False
    log_every: int = 10
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("total_steps", "global_batch_size", "accumulate", "num_nodes"):
            _check_count(name, getattr(self, name))
        for name in ("log_every", "checkpoint_every", "keep_checkpoints"):
            _check_count(name, getattr(self, name))
        if self.devices != "auto":
            _check_count("devices", self.devices)
        for name in ("learning_rate", "weight_decay"):
            _check_schedule(name, getattr(self, name))
        _check_name("precision", self.precision, PRECISIONS)
        _check_name("strategy", self.strategy, STRATEGIES)
        _check_name("accelerator", self.accelerator, ACCELERATORS)
        if self.strategy == "fsdp" and self.precision == "16-mixed":
            raise ValueError(
                "TrainSettings: strategy fsdp does not scale losses, which precision 16-mixed needs; "
                "use bf16-mixed or 32, or strategy ddp."
            )
        self._check_optimizer()

    def _check_optimizer(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"TrainSettings: seed must be an integer of at least 0, got {self.seed!r}.")
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"TrainSettings: betas must be two numbers in [0, 1), got {self.betas!r}.")
        if not self.eps > 0.0:
            raise ValueError(f"TrainSettings: eps must be above 0, got {self.eps!r}.")
        if self.clip_grad is not None and not (math.isfinite(self.clip_grad) and self.clip_grad > 0.0):
            raise ValueError(
                f"TrainSettings: clip_grad must be a number above 0, got {self.clip_grad!r}; "
                "None leaves gradients as they are."
            )

    def identity(self) -> dict[str, Any]:
        """What another value of would make it another run; schedules by their values at four steps."""
        names = ("seed", "total_steps", "global_batch_size", "accumulate", "precision")
        steps = [self.total_steps * quarter // 4 for quarter in range(4)]
        return {
            **{name: getattr(self, name) for name in names},
            "betas": [float(beta) for beta in self.betas],
            "eps": float(self.eps),
            "clip_grad": None if self.clip_grad is None else float(self.clip_grad),
            "learning_rate": [float(self.learning_rate(step)) for step in steps],
            "weight_decay": [float(self.weight_decay(step)) for step in steps],
        }

    def last_or_every(self, step: int, every: int) -> bool:
        """Whether something that is due every `every` steps, and at the last one, is due after `step`."""
        return (step + 1) % every == 0 or step + 1 == self.total_steps


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"TrainSettings: {name} must be an integer of at least 1, got {value!r}.")


def _check_schedule(name: str, value: object) -> None:
    if not callable(value):
        raise ValueError(
            f"TrainSettings: {name} must be a function of the step, got {value!r}; "
            f"for a constant pass `lambda step: {value!r}`."
        )


def _check_name(name: str, value: str, known: tuple[str, ...]) -> None:
    if value in known:
        return
    nearest = difflib.get_close_matches(str(value), known, n=1, cutoff=0.3)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    raise ValueError(f"TrainSettings: {name} must be one of {', '.join(known)}, got {value!r}{hint}")

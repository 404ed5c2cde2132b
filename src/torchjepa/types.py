"""What more than one folder needs: `Grid`, `Masks`, `Batch`, `Loss` and the protocols between the layers.

Axis letters, one meaning each, everywhere: `b` batch, `t` time, `h` `w` token grid, `c` channels,
`n` tokens (or samples of a regularizer), `d` embedding, `m` target blocks, `k` tokens in a target block,
`v` views, `a` action. Counts start with `num_`. Steps count optimizer updates from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from torchjepa import _vector_math as _vector_math


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The token grid of an encoder: `t` time steps of `h` rows and `w` columns.

    Token ids run row-major: id = (time * h + row) * w + column.

    Args:
        t: number of tokens along time, 1 for an image.
        h: number of tokens along the height, 1 for a sequence.
        w: number of tokens along the width.

    Raises:
        ValueError: an axis is not a positive integer.
    """

    t: int = 1
    h: int = 1
    w: int = 1

    def __post_init__(self) -> None:
        for axis in ("t", "h", "w"):
            length = getattr(self, axis)
            if not isinstance(length, int) or isinstance(length, bool) or length < 1:
                raise ValueError(f"Grid: {axis} must be an integer of at least 1, got {length!r}.")

    @property
    def num_tokens(self) -> int:
        """Number of tokens, t * h * w."""
        return self.t * self.h * self.w

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(t, h, w)`."""
        return self.t, self.h, self.w


@dataclass(frozen=True)
class Masks:
    """Which tokens are seen and which are to be predicted, for every sample of a batch.

    Args:
        context: token ids that the context encoder sees, int64 `[b, n_ctx]`, sorted.
        targets: token ids of the target blocks, int64 `[b, m, k]`, sorted within a block.
    """

    context: Int64[Tensor, "b n_ctx"]
    targets: Int64[Tensor, "b m k"]

    def __len__(self) -> int:
        return self.context.shape[0]

    def __getitem__(self, rows: slice) -> Masks:
        """The masks of some samples of the batch."""
        return Masks(self.context[rows], self.targets[rows])

    def to(self, device: torch.device | str) -> Masks:
        """The same masks on another device."""
        return Masks(self.context.to(device, non_blocking=True), self.targets.to(device, non_blocking=True))


@dataclass(frozen=True)
class BatchKeys:
    """Names the samples of one micro-batch on one rank; what a sampler yields and a data set is asked for.

    Args:
        step: the optimizer update that the samples belong to, from 0.
        epochs: the epoch of each sample (a global batch may straddle two).
        indices: the index of each sample in the data set.
        row_start: position of the first sample in the step's global batch.
        global_size: number of samples in the step's global batch, over all ranks and micro-batches.
    """

    step: int
    epochs: tuple[int, ...]
    indices: tuple[int, ...]
    row_start: int
    global_size: int

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Batch:
    """Samples on their way to a learner.

    Args:
        views: one tensor for each view, each `[b, c, ...]`, floating point and normalised.
        ids: index of each sample in its data set, int64 `[b]`.
        labels: class index of each sample, int64 `[b]`, -1 where there is none. For judging only.
        row_start: position of the first row in the step's global batch. Whatever is drawn for a batch is
            drawn for the whole global batch and cut to the rows at hand, so that ranks and
            micro-batches together see exactly what one process would.
        global_size: number of samples in the step's global batch; `None` when this batch is all of it.
    """

    views: tuple[Tensor, ...]
    ids: Tensor
    labels: Tensor
    row_start: int = 0
    global_size: int | None = None

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def rows(self) -> slice:
        """The rows of the global batch that are here."""
        return slice(self.row_start, self.row_start + len(self))

    @property
    def num_global(self) -> int:
        """Number of samples in the step's global batch."""
        return len(self) if self.global_size is None else self.global_size

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(
            tuple(view.to(device, non_blocking=True) for view in self.views),
            self.ids.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.row_start,
            self.global_size,
        )


@dataclass(frozen=True)
class Loss:
    """What a learner gives for one batch.

    Args:
        total: the scalar to minimise, with its graph.
        terms: the named parts of it, detached scalars, still on the device.
        features: detached tensors for diagnosis, still on the device, at least
            `encoder` `[b, d]` (pooled per sample); where there is a predictor also
            `prediction` and `target`, both `[n, d]`.
    """

    total: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    features: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Learner(Protocol):
    """A model being trained, an `nn.Module`; all that the engine knows of it."""

    def loss(self, batch: Batch, step: int) -> Loss:
        """The loss of one batch at one step; a pure function of parameters, batch and step."""
        ...

    def after_step(self, step: int) -> None:
        """Called after the optimizer update of `step`; where an EMA moves."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """Tokens `[b, n, d]` of the encoder that is judged and deployed, for inputs `[b, c, ...]`."""
        ...

    def scheduled(self, step: int) -> Mapping[str, float]:
        """Host-side figures that follow from the step alone (the momentum, say), for the log."""
        ...


@dataclass(frozen=True)
class Embedded:
    """What a learner makes of a micro-batch before its samples meet those of other micro-batches.

    Args:
        embeddings: what the samples are compared by, each `[b, ...]` with its graph, row i from sample i alone
            (batch norms inside the encoder apart).
        local: the part of the loss that is a mean over the samples, with its terms and features; `None` where
            there is none.
    """

    embeddings: tuple[Tensor, ...]
    local: Loss | None = None


@runtime_checkable
class SplitLearner(Learner, Protocol):
    """A learner whose loss splits, so that micro-batches together give the gradient of the joined batch.

    `loss(batch, step)` is the sum of the local loss of `embed` and of `joint_loss` of its embeddings. Accumulating
    over m micro-batches, the engine embeds all of them, takes the joint loss once on the concatenated
    embeddings, and sends its gradient back through each micro-batch.
    """

    def embed(self, batch: Batch, step: int) -> Embedded:
        """The embeddings of a (micro-)batch and its local loss."""
        ...

    def joint_loss(self, embeddings: tuple[Tensor, ...], step: int) -> Loss:
        """The loss that couples samples, of the embeddings of the whole batch of this process.

        Called once for every update, also where the batch has been split.
        """
        ...


class NonFiniteError(ValueError):
    """A value that must be finite is NaN or infinite: data or a diverged network, and not a mistake in a call."""


@runtime_checkable
class Encoder(Protocol):
    """A network that turns inputs into tokens over a grid: the call of the ViT."""

    embed_dim: int

    def grid(self, input_shape: tuple[int, ...]) -> Grid:
        """The token grid of an input with these spatial axes (`(h, w)` for an image), in input units."""
        ...

    def __call__(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        """Tokens `[b, n, d]`; with `ids` `[b, n]` only those tokens are embedded and processed."""
        ...


@runtime_checkable
class MaskSampler(Protocol):
    """The mask contract: a function of the grid, the batch size and the generator alone."""

    def __call__(self, grid: Grid, batch_size: int, generator: torch.Generator) -> Masks:
        """Draw masks for a batch."""
        ...


@runtime_checkable
class Dynamics(Protocol):
    """The dynamics contract: what an action makes of a state, for many rows at once, each on its own."""

    def __call__(self, state: Any, action: Float[Tensor, "b a"], /) -> Any:
        """The next state, in the form of `state`: a tensor `[b, ...]`, or a tuple or dict of such tensors."""
        ...


@runtime_checkable
class Cost(Protocol):
    """The cost contract: what is to be least, one number for each trajectory."""

    def __call__(self, trajectory: Any, /) -> Float[Tensor, " b"]:
        """The cost of the states `[b, t, ...]` after each of t actions, in the form of the dynamics' state."""
        ...


@dataclass(frozen=True)
class Plan:
    """What a planner found for each of b problems.

    Args:
        actions: what to do `[b, t, a]`, on the device and in the dtype of the state.
        cost: what the cost function says of these actions `[b]`, finite, float32 or wider.
        info: how the search went, in the planner's own form.
    """

    actions: Float[Tensor, "b t a"]
    cost: Float[Tensor, " b"]
    info: Any = None


@runtime_checkable
class Planner(Protocol):
    """The planner contract: a function of its arguments alone, with every draw from the generator."""

    def plan(
        self, dynamics: Dynamics, cost: Cost, state: Any, *, horizon: int, generator: torch.Generator
    ) -> Plan:
        """Actions of little cost for `horizon` steps from each of the states `[b, ...]`."""
        ...

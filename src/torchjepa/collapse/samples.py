"""Views as groups of samples: over the batch, or over time, on one process or on several."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa import dist
from torchjepa.types import NonFiniteError

Over = Literal["batch", "time", "both"]
OVER = ("batch", "time", "both")


@dataclass(frozen=True)
class Samples:
    """The views of a regularizer as groups of samples, each group with statistics of its own.

    Over the batch, a group is a time step (a single one for views `[n, d]`) and its samples go on on the other
    processes. Over time, a group is a sequence, whole on its process, and the groups go on on the others.

    Args:
        views: each `[g, n, d]`, g groups of n samples, float32 or wider, of one shape.
        row_counts: the number of samples of each process, where they go on on the others; else `(n,)`.
        num_groups: number of groups over all processes.
        across: whether the samples of a group go on on the other processes of a process group of several.
    """

    views: tuple[Float[Tensor, "g n d"], ...]
    row_counts: tuple[int, ...]
    num_groups: int
    across: bool

    @property
    def count(self) -> int:
        """Number of samples of a group, over all processes."""
        return sum(self.row_counts)

    def sum(self, x: Tensor) -> Tensor:
        """The sum of local sums over the processes that hold the samples of a group, seen by autograd.

        Args:
            x: sums over this process's samples, of any shape.
        """
        return dist.all_reduce_sum(x) if self.across else x

    def mean_over_groups(self, values: Float[Tensor, " v_g"]) -> Float[Tensor, ""]:
        """The mean over all groups of all processes of one number a group.

        Args:
            values: the number of every group that is here, `[g]`; or of every group of every view, `[v * g]`.
        """
        if self.across or not dist.is_distributed():
            return values.mean() if values.shape[0] > 1 else values.reshape(())
        num_views = values.shape[0] // self.views[0].shape[0] if values.shape[0] else 1
        return dist.all_reduce_sum(values.sum()) / (self.num_groups * num_views)


def group_samples(
    name: str, views: Sequence[Tensor], over: Over, *, num_views: tuple[int, int | None], min_samples: int
) -> tuple[Samples, ...]:
    """Check views and group them; one entry for each axis that `over` names.

    Args:
        name: the regularizer, for messages.
        views: each `[n, d]`, or `[b, t, d]`.
        over: the axis that statistics run over: the batch, time or both.
        num_views: the smallest and the largest number of views, `None` for no limit.
        min_samples: the least number of samples that the statistics need.

    Raises:
        ValueError: another number of views; shapes that differ or are neither `[n, d]` nor, for time,
            `[b, t, d]`; too few samples; a dtype that is not floating point; processes with another d or t.
    """
    _check_views(name, views, num_views)
    rank3 = views[0].ndim == 3
    if over != "batch" and not rank3:
        raise ValueError(
            f"{name}: over={over!r} needs views [b, t, d], got {tuple(views[0].shape)}; "
            "views [n, d] have no time: use over='batch'."
        )
    dtype = torch.float32
    for view in views:
        dtype = torch.promote_types(dtype, view.dtype)
    wide = tuple(view.to(dtype) for view in views)
    b, t, d = views[0].shape if rank3 else (views[0].shape[0], 1, views[0].shape[1])
    counts = _row_counts(name, (b, t, d), views[0].device)
    groups = {}
    if over in ("batch", "both"):
        by_time = tuple(view.transpose(0, 1) if rank3 else view.unsqueeze(0) for view in wide)
        groups["batch"] = Samples(by_time, counts, t, dist.is_distributed())
    if over in ("time", "both"):
        groups["time"] = Samples(wide, (t,), sum(counts), across=False)
    for axis, samples in groups.items():
        if samples.count < min_samples or samples.num_groups < 1:
            raise ValueError(
                f"{name}: needs at least {min_samples} samples over the {axis}, got {samples.count} in views "
                f"of shape {tuple(views[0].shape)}; give it a larger batch (or longer sequences)."
            )
    return tuple(groups.values())


def _check_views(name: str, views: Sequence[Tensor], num_views: tuple[int, int | None]) -> None:
    least, most = num_views
    if len(views) < least or (most is not None and len(views) > most):
        wanted = (
            f"{least}" if most == least else f"at least {least}" if most is None else f"{least} to {most}"
        )
        raise ValueError(f"{name}: takes {wanted} view(s) of each sample, got {len(views)}.")
    for view in views:
        if not isinstance(view, Tensor) or not view.is_floating_point():
            got = [getattr(each, "dtype", type(each).__name__) for each in views]
            raise ValueError(
                f"{name}: views must be floating-point tensors, got {', '.join(map(str, got))}; convert them "
                "with .float()."
            )
    shapes = [tuple(view.shape) for view in views]
    if len(set(shapes)) > 1 or len(shapes[0]) not in (2, 3) or shapes[0][-1] < 1:
        raise ValueError(
            f"{name}: views must have one shape [n, d] or [b, t, d] with d at least 1, got "
            f"{' and '.join(map(str, dict.fromkeys(shapes)))}; pool or flatten tokens to one row a sample first."
        )


def _row_counts(name: str, shape: tuple[int, int, int], device: torch.device) -> tuple[int, ...]:
    """The batch size of every process; refuses, on all of them, processes with other sequences or dimensions."""
    if not dist.is_distributed():
        return (shape[0],)
    # One short message: a mismatch found here is an error on every rank, found by the sums it would be a hang.
    shapes = torch.zeros(dist.world_size(), 3, dtype=torch.int64, device=device)
    shapes[dist.rank()] = torch.tensor(shape)
    rows = dist.all_reduce_sum(shapes).tolist()
    if len({(t, d) for _, t, d in rows}) > 1:
        raise ValueError(
            f"{name}: all processes must have views of one length and dimension, got [b, t, d] = {rows}."
        )
    return tuple(b for b, _, _ in rows)


def check_finite(name: str, terms: Iterable[Tensor], views: Sequence[Tensor]) -> None:
    """Refuse NaN and infinity in a view, found by a term that is not finite.

    On the CPU only: on other devices a look would make the host wait at every step; there the loss is NaN.

    Args:
        name: the regularizer, for the message.
        terms: scalars, the same on all processes.
        views: what it was computed from.

    Raises:
        NonFiniteError: a value of a view is NaN or infinite, here or on another process.
    """
    if views[0].device.type != "cpu" or torch.compiler.is_compiling():
        return
    if all(math.isfinite(term.item()) for term in terms):
        return
    found = []
    for index, view in enumerate(views):
        bad = ~torch.isfinite(view.detach())
        if bool(bad.any()):
            row = int(bad.flatten(1).any(1).nonzero()[0])
            found.append(f"view {index} holds {int(bad.sum())} of {view.numel()}, the first in row {row}")
    if not found and dist.is_distributed():
        found = ["those of another process, or the loss overflowed"]
    if found:
        raise NonFiniteError(
            f"{name}: views must be finite, got NaN or infinity: {'; '.join(found)}. Look for a diverged network "
            "(lower the learning rate, clip gradients) or for NaN in the data."
        )


@contextmanager
def autocast_off(device: torch.device) -> Iterator[None]:
    """Keep matrix products in the dtype of their operands.

    Args:
        device: where the operands are.
    """
    if not torch.is_autocast_enabled(device.type):
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield


def check_weights(name: str, **weights: float) -> None:
    """Refuse a weight that is negative or not finite.

    Args:
        name: the regularizer, for the message.
        weights: the values by argument name.

    Raises:
        ValueError: a weight is negative or not finite.
    """
    for argument, weight in weights.items():
        if not 0.0 <= weight < math.inf:
            raise ValueError(f"{name}: {argument} must be a finite number of at least 0, got {weight!r}.")


def check_eps(name: str, eps: float) -> None:
    """Refuse an eps that is not positive: the square root's gradient is infinite at variance 0.

    Args:
        name: the regularizer, for the message.
        eps: what is added to a variance below a square root.

    Raises:
        ValueError: eps is not a positive number.
    """
    if not 0.0 < eps < math.inf:
        raise ValueError(
            f"{name}: eps must be a positive number, got {eps!r}; it keeps the gradient finite at variance 0."
        )


def check_over(name: str, over: str) -> None:
    """Refuse an axis that there is not.

    Args:
        name: the regularizer, for the message.
        over: the axis that statistics run over.

    Raises:
        ValueError: it is none of batch, time and both.
    """
    if over not in OVER:
        raise ValueError(f"{name}: over must be one of {', '.join(map(repr, OVER))}, got {over!r}.")

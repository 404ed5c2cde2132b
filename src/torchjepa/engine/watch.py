"""What the loop keeps an eye on: finite numbers, agreement between processes, time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from torchjepa import dist


class DivergedError(RuntimeError):
    """The loss or the state of a run is no longer finite.

    Args:
        step: the first step it was seen at.
        message: what to tell the user.
    """

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


class FirstBadStep:
    """Remembers on the device the first step with a loss that is NaN or infinite, without waiting for it.

    Args:
        device: where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._step = torch.full((), -1, dtype=torch.int64, device=device)

    def add(self, total: Tensor, step: int) -> None:
        """Look at one loss.

        Args:
            total: scalar.
            step: where it comes from.
        """
        is_first = ~torch.isfinite(total.detach()) & (self._step < 0)
        self._step.masked_fill_(is_first, step)

    def read(self) -> int:
        """The step, -1 when all losses were finite; waits for the device."""
        return int(self._step)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no floating-point entry of any tensor is NaN or infinite; waits for the device once.

    Args:
        tensors: on one device.
    """
    floating = [tensor.detach() for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not floating:
        return True
    largest = torch._foreach_norm(floating, float("inf"))
    return bool(torch.stack([torch.isfinite(norm) for norm in largest]).all())


class Vote:
    """Lets all processes act on the largest of what each of them has seen.

    Over gloo and CPU tensors, so that asking every step does not wait for a GPU.
    """

    def __init__(self) -> None:
        self._group = torch.distributed.new_group(backend="gloo") if dist.is_distributed() else None

    def __call__(self, *values: int) -> tuple[int, ...]:
        """The maximum over the processes of each value.

        Args:
            values: what this process has seen.
        """
        if self._group is None:
            return values
        ballot = torch.tensor(values, dtype=torch.int64)
        torch.distributed.all_reduce(ballot, op=torch.distributed.ReduceOp.MAX, group=self._group)
        return tuple(ballot.tolist())


class Stopwatch:
    """Time of the run, and the part of it that went into training steps.

    Args:
        before: seconds that earlier processes of the run took.
        step: the step that this one starts with.
    """

    def __init__(self, before: float = 0.0, step: int = 0) -> None:
        now = time.perf_counter()
        self._start = now - before
        self._lap_start, self._lap_step = now, step

    def seconds(self) -> float:
        """Since the run began."""
        return time.perf_counter() - self._start

    def steps_per_second(self, step: int) -> float:
        """Since the last call, what `aside` covered left out.

        Args:
            step: number of steps done.
        """
        now = time.perf_counter()
        rate = (step - self._lap_step) / max(now - self._lap_start, 1e-9)
        self._lap_start, self._lap_step = now, step
        return rate

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leaves what happens inside out of the rate."""
        start = time.perf_counter()
        yield
        self._lap_start += time.perf_counter() - start

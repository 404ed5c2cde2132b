"""Which sample comes when: a function of the seed and the step, so there is no loader state to save."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from torchjepa import rng
from torchjepa.types import BatchKeys


class KeyedSampler:
    """The samples of every step: epochs, each a keyed permutation of the whole set, laid end to end.

    stream = perm(seed, 0) ++ perm(seed, 1) ++ ...; step s gets stream[s * B : (s + 1) * B]. Micro-batch m of
    rank r takes its contiguous rows of it, from m * B / A + r * B / (A * W), so that whatever the number of
    ranks W and micro-batches A, together they see the same global batch of size B, each sample once.

    Args:
        num_samples: number of samples in the set.
        global_batch_size: B, samples of one step over all ranks and micro-batches.
        seed: the seed of the run.
        total_steps: steps of the whole run.
        start_step: the step to begin with.
        accumulate: A, micro-batches of a step.
        rank: r, which process this is.
        world_size: W, number of processes.

    Raises:
        ValueError: B is not a multiple of W * A, or a count is out of range.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch_size: int,
        *,
        seed: int,
        total_steps: int,
        start_step: int = 0,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if num_samples < 1:
            raise ValueError(f"KeyedSampler: num_samples must be at least 1, got {num_samples}.")
        if not 0 <= start_step <= total_steps:
            raise ValueError(
                f"KeyedSampler: start_step must lie in [0, total_steps={total_steps}], got {start_step}."
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"KeyedSampler: rank must lie in [0, world_size={world_size}), got {rank}.")
        check_divisible(global_batch_size, accumulate, world_size)
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.total_steps = total_steps
        self.start_step = start_step
        self.accumulate = accumulate
        self.rank = rank
        self.world_size = world_size
        self._orders: dict[int, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        """Number of micro-batches that this rank will see."""
        return (self.total_steps - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[BatchKeys]:
        num_rows = self.global_batch_size // (self.accumulate * self.world_size)
        for step in range(self.start_step, self.total_steps):
            for micro in range(self.accumulate):
                yield self._keys(step, (micro * self.world_size + self.rank) * num_rows, num_rows)

    def _keys(self, step: int, row_start: int, num_rows: int) -> BatchKeys:
        first = step * self.global_batch_size + row_start
        epochs, places = np.divmod(np.arange(first, first + num_rows), self.num_samples)
        present = range(int(epochs[0]), int(epochs[-1]) + 1)
        self._orders = {epoch: self._order(epoch) for epoch in present}
        parts = [self._orders[epoch][places[epochs == epoch]] for epoch in present]
        return BatchKeys(
            step=step,
            epochs=tuple(epochs.tolist()),
            indices=tuple(np.concatenate(parts).tolist()),
            row_start=row_start,
            global_size=self.global_batch_size,
        )

    def _order(self, epoch: int) -> NDArray[np.int64]:
        kept = self._orders.get(epoch)
        if kept is not None:
            return kept
        return torch.randperm(self.num_samples, generator=rng.generator(self.seed, "order", epoch)).numpy()


def check_divisible(global_batch_size: int, accumulate: int, world_size: int) -> None:
    """Refuse a global batch that does not split evenly.

    Args:
        global_batch_size: samples of one step.
        accumulate: micro-batches of a step.
        world_size: number of processes.

    Raises:
        ValueError: it is not a positive multiple of `accumulate * world_size`; names the nearest that is.
    """
    parts = accumulate * world_size
    if global_batch_size >= 1 and global_batch_size % parts == 0:
        return
    nearest = max(parts, round(global_batch_size / parts) * parts)
    raise ValueError(
        f"The global batch size {global_batch_size} does not split evenly over {world_size} process(es) x "
        f"{accumulate} micro-batch(es); use a multiple of {parts}, {nearest} for instance, "
        "or change accumulate or the number of devices."
    )

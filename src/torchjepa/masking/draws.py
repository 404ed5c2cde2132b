"""Random integers, orders and subsets for a whole batch at once, and the maps of tokens that they work on.

The bits come from a torch generator; the arithmetic is NumPy's, whose sort and partition of short integer
rows are several times faster than torch's on a CPU.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray


def check_count(owner: str, name: str, value: object) -> None:
    """Refuse a number that is not a positive integer, in the name of the mask that was asked."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{owner}: {name} must be an integer of at least 1, got {value!r}.")


def integers(high: int, shape: tuple[int, ...], generator: torch.Generator) -> NDArray[np.int64]:
    """Uniform integers in [0, high), drawn on the generator's device and brought to the host."""
    return torch.randint(high, shape, generator=generator, device=generator.device).cpu().numpy()


def random_intervals(length: int, sizes: NDArray[np.int64], generator: torch.Generator) -> NDArray[np.bool_]:
    """Intervals of the given sizes at uniform places of an axis, first and last place included.

    Args:
        length: positions of the axis.
        sizes: length of each interval, any shape `[...]`.
        generator: source of the places.

    Returns:
        which positions each covers, `[..., length]`.
    """
    # A remainder of 40 random bits: each interval has its own number of places.
    start = integers(1 << 40, sizes.shape, generator) % (length - sizes + 1)
    offset = np.arange(length) - start[..., None]
    return (offset >= 0) & (offset < sizes[..., None])


def random_union(
    shape: tuple[int, int, int],
    sizes: NDArray[np.int64],
    durations: NDArray[np.int64] | None,
    generator: torch.Generator,
) -> NDArray[np.bool_]:
    """Which tokens of a clip lie in at least one of several boxes at uniform places.

    Args:
        shape: time steps, rows and columns of the clip, `(t, h, w)`.
        sizes: rows and columns of each box, `[b, m, 2]`.
        durations: time steps of each box, `[b, m]`; `None` where all span the clip, whose steps are then alike.
        generator: source of the places.

    Returns:
        bool `[b, t, h * w]`, or `[b, 1, h * w]` without durations.
    """
    t, h, w = shape
    planes = random_intervals(h, sizes[..., 0], generator)
    columns = random_intervals(w, sizes[..., 1], generator)
    if durations is not None:
        steps = random_intervals(t, durations, generator)
        planes = (steps[..., :, None] & planes[..., None, :]).reshape(*durations.shape, t * h)
    # How many boxes hold each token: a product of matrices, summed over the boxes.
    covers = planes.astype(np.float32).swapaxes(1, 2) @ columns.astype(np.float32)
    return (covers > 0).reshape(len(sizes), -1, h * w)


def count(visible: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """How many tokens of each row of a map `[b, n]` are set, `[b]`."""
    return visible.view(np.uint8).sum(axis=1, dtype=np.uint32)  # twice as fast as count_nonzero


def hide(visible: NDArray[np.bool_], ids: NDArray[np.int64]) -> None:
    """Clear the tokens `ids` `[b, ...]` of each row of a contiguous map `[b, n]`, in place."""
    visible.reshape(-1)[(ids.reshape(len(ids), -1) + _row_starts(visible)).reshape(-1)] = False


def other_ids(ids: NDArray[np.int64], num_tokens: int) -> NDArray[np.int64]:
    """The tokens of each row that are not among `ids` `[b, k]`, sorted, `[b, num_tokens - k]`."""
    others = np.ones((len(ids), num_tokens), dtype=bool)
    hide(others, ids)
    return np.flatnonzero(others).reshape(len(ids), -1) - _row_starts(others)


def random_order(batch_size: int, num_tokens: int, generator: torch.Generator) -> NDArray[np.int64]:
    """A random permutation of the token ids for each sample, `[b, n]`."""
    # Random high bits, the token id in the low ones: sorting the keys sorts the ids along with them.
    id_bits = num_tokens.bit_length()
    keys = integers(1 << _key_bits(num_tokens), (batch_size, num_tokens), generator)
    keys <<= id_bits
    keys |= np.arange(num_tokens)
    keys.sort(axis=1)
    return keys & ((1 << id_bits) - 1)


def random_subset(visible: NDArray[np.bool_], num: int, generator: torch.Generator) -> NDArray[np.int64]:
    """`num` of the visible tokens of each sample, every subset equally likely.

    Args:
        visible: which tokens may be chosen, `[b, n]`; at least `num` in each row.
        num: how many to choose.
        generator: source of the draws.

    Returns:
        token ids `[b, num]`, sorted.
    """
    return smallest(random_keys(visible.shape, generator), visible, num)


def random_keys(shape: tuple[int, int], generator: torch.Generator) -> NDArray[np.int64]:
    """A random number for each token of a map `[b, n]`; what is done by their order is blind to position."""
    return integers(1 << _key_bits(shape[1]), shape, generator)


def ascending_keys(shape: tuple[int, int]) -> NDArray[np.int64]:
    """Keys for `smallest` that choose the first tokens of each row."""
    return np.broadcast_to(np.arange(shape[1]) << (_key_bits(shape[1]) - 32), shape)


def smallest(keys: NDArray[np.int64], visible: NDArray[np.bool_], num: int) -> NDArray[np.int64]:
    """The visible tokens with the smallest keys, of equal keys the first.

    Args:
        keys: from `random_keys` or `ascending_keys`, `[b, n]`; maps that share no token may share the keys.
        visible: which tokens may be chosen, `[b, n]`; at least `num` in each row.
        num: how many to choose.

    Returns:
        token ids `[b, num]`, sorted.
    """
    batch_size, num_tokens = visible.shape
    key_bits = _key_bits(num_tokens)
    # The upper 32 bits decide, at half the cost, unless two are equal just where the subset ends.
    upper = (keys >> (key_bits - 32)).astype(np.uint32)
    upper |= (~visible).view(np.uint8) * np.uint32(0xFFFFFFFF)
    chosen = upper <= np.partition(upper, num - 1, axis=1)[:, num - 1 : num]
    tied = np.flatnonzero(count(chosen) != num)
    if tied.size:
        order = np.argsort(np.where(visible[tied], keys[tied], 1 << key_bits), axis=1, kind="stable")
        chosen[tied] = False
        chosen[tied[:, None], order[:, :num]] = True
    return np.flatnonzero(chosen).reshape(batch_size, num) - _row_starts(visible)


def _key_bits(num_tokens: int) -> int:
    return 62 - num_tokens.bit_length()


def _row_starts(visible: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.arange(0, visible.size, visible.shape[1])[:, None]

"""Random integers, orders and subsets for a whole batch at once, and the maps of tokens that they work on.

The bits come from a torch generator; the arithmetic is NumPy's, whose sort and partition of short integer
rows are several times faster than torch's on a CPU.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray


def check_batch_size(name: str, batch_size: int) -> None:
    """Refuse a batch size that is not a positive integer, in the name of the mask that was asked."""
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"{name}: batch_size must be an integer of at least 1, got {batch_size!r}.")


def integers(high: int, shape: tuple[int, ...], generator: torch.Generator) -> NDArray[np.int64]:
    """Uniform integers in [0, high), drawn on the generator's device and brought to the host."""
    return torch.randint(high, shape, generator=generator, device=generator.device).cpu().numpy()


def count(visible: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """How many tokens of each row of a map `[b, n]` are set, `[b]`."""
    return visible.view(np.uint8).sum(axis=1, dtype=np.uint32)  # twice as fast as count_nonzero


def hide(visible: NDArray[np.bool_], ids: NDArray[np.int64]) -> None:
    """Clear the tokens `ids` `[b, ...]` of each row of a contiguous map `[b, n]`, in place."""
    visible.reshape(-1)[(ids.reshape(len(ids), -1) + _row_starts(visible)).reshape(-1)] = False


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

    Those with the smallest random keys, of equal keys the first.

    Args:
        visible: which tokens may be chosen, `[b, n]`; at least `num` in each row.
        num: how many to choose.
        generator: source of the draws.

    Returns:
        token ids `[b, num]`, sorted.
    """
    batch_size, num_tokens = visible.shape
    key_bits = _key_bits(num_tokens)
    keys = integers(1 << key_bits, visible.shape, generator)
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

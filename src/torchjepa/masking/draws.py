"""Random integers, orders and subsets for a whole batch at once.

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


def random_order(batch_size: int, num_tokens: int, generator: torch.Generator) -> NDArray[np.int64]:
    """A random permutation of the token ids for each sample, `[b, n]`."""
    keys, id_bits = _tagged_keys(batch_size, num_tokens, generator)
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
    keys, id_bits = _tagged_keys(visible.shape[0], visible.shape[1], generator)
    keys |= (~visible).astype(np.int64) << 62
    keys.partition(num - 1, axis=1)
    return np.sort(keys[:, :num] & ((1 << id_bits) - 1), axis=1)


def _tagged_keys(
    batch_size: int, num_tokens: int, generator: torch.Generator
) -> tuple[NDArray[np.int64], int]:
    # Random high bits, the token id in the low ones: no two keys of a row are equal, and sorting the keys
    # sorts the ids along with them.
    id_bits = num_tokens.bit_length()
    keys = integers(1 << (62 - id_bits), (batch_size, num_tokens), generator)
    keys <<= id_bits
    keys |= np.arange(num_tokens)
    return keys, id_bits

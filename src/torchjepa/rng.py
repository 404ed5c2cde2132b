"""Keyed randomness: every draw is a function of `(run seed, purpose, epoch or step, sample id)`.

Nothing depends on global state, worker count, wall clock or rank layout, so a run repeats bit for bit
with any number of workers and continues bit for bit after it was killed.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from torchjepa import _vector_math as _vector_math

Key = str | int


def derive_seed(seed: int, *keys: Key) -> int:
    """A 63-bit seed for the stream named by `keys`; different keys give unrelated streams.

    seed' = BLAKE2b-64(seed, key_1, key_2, ...) >> 1, every part tagged with its type and length, so that
    ("a", "b") and ("ab",) or 1 and "1" never meet.

    Args:
        seed: the seed of the run.
        keys: purpose first, then epoch, step or sample id.

    Raises:
        ValueError: a key is neither a string nor an integer.
    """
    digest = hashlib.blake2b(digest_size=8)
    for key in (seed, *keys):
        if isinstance(key, bool) or not isinstance(key, (str, int, np.integer)):
            raise ValueError(
                f"rng: a key must be a string or an integer, got {key!r} ({type(key).__name__})."
            )
        text = key if isinstance(key, str) else str(int(key))
        part = text.encode()
        digest.update(f"{'s' if isinstance(key, str) else 'i'}{len(part)}:".encode() + part)
    return int.from_bytes(digest.digest(), "little") >> 1


def generator(seed: int, *keys: Key, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for the stream named by `keys`.

    Args:
        seed: the seed of the run.
        keys: purpose first, then epoch, step or sample id: `generator(0, "mask", step)`.
        device: where the draws happen.
    """
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *keys))


def uniforms(seed: int, *keys: Key, ids: ArrayLike, num: int) -> NDArray[np.float64]:
    """`num` uniform draws in [0, 1) for each sample id, whatever batch the sample comes in.

    u[i, j] = top 53 bits of mix(mix(s + ids[i] * g) + (j + 1) * g) / 2^53, with s from the keys, g the golden
    ratio in 64 bits and mix the SplitMix64 finaliser (Steele, Lea and Flood 2014). A counter-based
    generator because one torch.Generator for each of thousands of samples would cost more than the
    augmentation itself.

    Args:
        seed: the seed of the run.
        keys: purpose first, then the epoch: `uniforms(0, "augment", epoch, ids=ids, num=16)`.
        ids: sample ids, integers `[b]`; or one pre-mixed key a row.
        num: draws for each sample.

    Returns:
        float64 `[b, num]`.
    """
    start = np.uint64(derive_seed(seed, *keys))
    rows = np.asarray(ids, dtype=np.int64).astype(np.uint64)
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        states = _mix(start + rows * golden)
        columns = (np.arange(num, dtype=np.uint64) + np.uint64(1)) * golden
        bits = _mix(states[:, None] + columns[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

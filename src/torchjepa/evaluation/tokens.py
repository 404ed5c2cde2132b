"""Tokens of a data set, kept so that a probe can pass over them many times while the encoder runs once."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchjepa.evaluation.features import Features, in_pieces, join_features
from torchjepa.types import Batch

CACHE_BYTES = 2 << 30


@dataclass(frozen=True)
class Tokens:
    """The tokens of each sample of a data set, on the CPU.

    Args:
        tokens: `[b, n, d]`, float32, or bfloat16 where they are many.
        labels: class index of each sample, int64 `[b]`, -1 where there is none.
        ids: index of each sample in its data set, int64 `[b]`.

    Raises:
        ValueError: the shapes do not fit together.
    """

    tokens: Tensor
    labels: Tensor
    ids: Tensor

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3:
            raise ValueError(f"Tokens: tokens must be [b, n, d], got {tuple(self.tokens.shape)}.")
        for name in ("labels", "ids"):
            shape = tuple(getattr(self, name).shape)
            if shape != (len(self),):
                raise ValueError(f"Tokens: {name} must be [{len(self)}] like tokens, got {shape}.")

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def labelled(self) -> Tensor:
        """Row numbers of the samples that have a label; no tokens are copied."""
        return torch.nonzero(self.labels >= 0)[:, 0]


class TokenCache:
    """Keeps tokens batch by batch: float32 in memory up to a budget, bfloat16 in a file beyond it.

    The file has no name: it is gone with the tensor that maps it, or with the process. bfloat16 has float32's range,
    so that nothing overflows.

    Args:
        num_samples: most samples that will come.
        max_bytes: memory that float32 tokens may take, 2 GiB.
        folder: where the file lies, with room for 2 bytes a value; the system's folder for temporary files by default.
    """

    def __init__(
        self, num_samples: int, *, max_bytes: int = CACHE_BYTES, folder: str | Path | None = None
    ) -> None:
        self.num_samples, self.max_bytes, self.folder = num_samples, max_bytes, folder
        self._held: Tensor | None = None
        self._labels: list[Tensor] = []
        self._ids: list[Tensor] = []
        self._num = 0

    def add(self, tokens: Tokens) -> None:
        """Keep the tokens of a batch.

        Raises:
            ValueError: more samples than were announced, or another shape than before.
        """
        shape = tuple(tokens.tokens.shape)
        if self._held is None:
            self._held = self._room(self.num_samples, *shape[1:])
        if shape[1:] != self._held.shape[1:] or self._num + len(tokens) > self.num_samples:
            raise ValueError(
                f"TokenCache: tokens {shape} do not fit behind {self._num} of at most {self.num_samples} samples of "
                f"{tuple(self._held.shape[1:])}."
            )
        self._held[self._num : self._num + len(tokens)].copy_(tokens.tokens)
        self._num += len(tokens)
        self._labels.append(tokens.labels)
        self._ids.append(tokens.ids)

    def tokens(self) -> Tokens:
        """All that was kept, without a copy of it.

        Raises:
            ValueError: nothing was.
        """
        if self._held is None:
            raise ValueError("TokenCache: there are no tokens; is the data set empty?")
        return Tokens(self._held[: self._num], torch.cat(self._labels), torch.cat(self._ids))

    def _room(self, *shape: int) -> Tensor:
        if 4 * math.prod(shape) <= self.max_bytes:
            return torch.empty(shape)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            mapped = np.memmap(file, np.int16, "w+", shape=shape)
        return torch.from_numpy(mapped).view(torch.bfloat16)


class Collector:
    """Collects what an encoder makes of a data set while its batches pass by: features, and tokens if wanted.

    Several collectors at one stream share the reading of the data.

    Args:
        encode: maps inputs `[b, c, ...]` to tokens `[b, n, d]`.
        pool: maps tokens `[b, n, d]` to features `[b, d]`.
        device: where `encode` lives.
        cache: where tokens are kept, if they are wanted.
        num_clips: clips of each video, which come as samples video * num_clips + clip, those of a video in one
            batch; their features are averaged, their tokens joined to one sequence (V-JEPA's segments).
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        *,
        pool: Callable[[Tensor], Tensor],
        device: torch.device | str,
        cache: TokenCache | None = None,
        num_clips: int = 1,
    ) -> None:
        self.encode, self.pool, self.device = encode, pool, device
        self.cache, self.num_clips = cache, num_clips
        self._parts: list[Features] = []

    def add(self, batch: Batch) -> None:
        """Encode the first view of a batch.

        Raises:
            ValueError: what comes out is not a sequence of tokens for each sample.
        """
        found = [
            Tokens(each, batch.labels.cpu(), batch.ids.cpu())
            for each in in_pieces(self._encode, batch.views[0], self.device)
        ]
        if self.num_clips > 1:
            found = [_join_clips(each, self.num_clips) for each in found]
        self._parts.append(Features(found[0].tokens.mean(dim=1), found[0].labels, found[0].ids))
        if self.cache is not None:
            self.cache.add(found[1])

    def features(self) -> Features:
        """The pooled features of all batches.

        Raises:
            ValueError: there was none.
        """
        return join_features(self._parts)

    def _encode(self, x: Tensor) -> tuple[Tensor, ...]:
        # What is pooled where the encoder lives, a sequence of one, and the tokens only if they are wanted.
        tokens = self.encode(x)
        if tokens.ndim != 3 or len(tokens) != len(x):
            raise ValueError(
                f"Collector: expected tokens [b, n, d] with b = {len(x)}, got {tuple(tokens.shape)}."
            )
        pooled = self.pool(tokens)[:, None]
        return (pooled,) if self.cache is None else (pooled, tokens)


def _join_clips(clips: Tokens, num_clips: int) -> Tokens:
    # For a clip that could not be decoded another of its video is there twice.
    videos, counts = (clips.ids // num_clips).unique(return_counts=True)
    starts = counts.cumsum(0) - counts
    rows = starts[:, None] + torch.arange(num_clips) % counts[:, None]
    return Tokens(clips.tokens[rows].flatten(1, 2), clips.labels[starts], videos)

"""Features of a data set: what an encoder makes of every sample, and raw pixels beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchjepa.types import Batch

# On a CPU so many samples are encoded at once: their activations stay near the caches and in memory that the allocator
# keeps, where those of a whole batch are fetched and mapped anew in every block (1.4 times as long at 64 tokens).
_SAMPLES_AT_ONCE = 32


@dataclass(frozen=True)
class Features:
    """One feature vector for each sample of a data set, on the CPU.

    Args:
        features: float32 `[n, d]`.
        labels: class index of each sample, int64 `[n]`, -1 where there is none.
        ids: index of each sample in its data set, int64 `[n]`.

    Raises:
        ValueError: the shapes do not fit together.
    """

    features: Tensor
    labels: Tensor
    ids: Tensor

    def __post_init__(self) -> None:
        if self.features.ndim != 2:
            raise ValueError(f"Features: features must be [n, d], got {tuple(self.features.shape)}.")
        for name in ("labels", "ids"):
            shape = tuple(getattr(self, name).shape)
            if shape != (len(self),):
                raise ValueError(f"Features: {name} must be [{len(self)}] like features, got {shape}.")

    def __len__(self) -> int:
        return self.features.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Features:
        """Some of the samples, by slice, index or boolean mask."""
        return Features(self.features[rows], self.labels[rows], self.ids[rows])

    @property
    def labelled(self) -> Features:
        """The samples that have a label."""
        known = self.labels >= 0
        return self if bool(known.all()) else self[known]


def stream_features(
    encode: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    *,
    device: torch.device | str,
    pool: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Features]:
    """The features of each batch as it comes, so that memory holds one batch whatever the data set's size.

    An `nn.Module` (or the module whose bound method `encode` is) runs in evaluation mode and gets its mode
    back afterwards, whole or interrupted. On a CPU it gets 32 samples of a batch at a time, which is faster.

    Args:
        encode: maps inputs `[b, c, ...]` to tokens `[b, n, d]`, or to features `[b, d]`.
        batches: batches whose first view is encoded.
        device: where `encode` lives.
        pool: maps tokens `[b, n, d]` to features `[b, d]`; `None` when `encode` does so itself.

    Yields:
        The features of one batch.

    Raises:
        ValueError: what comes out is not one vector for each sample.
    """
    with evaluating(encode):
        for batch in batches:
            yield encode_batch(encode, batch, device=device, pool=pool)


def extract_features(
    encode: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    *,
    device: torch.device | str,
    pool: Callable[[Tensor], Tensor] | None = None,
) -> Features:
    """The features of a whole data set, `stream_features` joined.

    Args:
        encode: maps inputs `[b, c, ...]` to tokens `[b, n, d]`, or to features `[b, d]`.
        batches: batches whose first view is encoded.
        device: where `encode` lives.
        pool: maps tokens `[b, n, d]` to features `[b, d]`; `None` when `encode` does so itself.

    Raises:
        ValueError: there is no batch, or what comes out is not one vector for each sample.
    """
    return join_features(stream_features(encode, batches, device=device, pool=pool))


def raw_pixels(batches: Iterable[Batch]) -> Features:
    """The baseline without any network: the preprocessed input itself, flattened to `[n, c * h * w]`.

    Args:
        batches: batches whose first view is taken.

    Raises:
        ValueError: there is no batch.
    """
    return join_features(
        Features(batch.views[0].flatten(1).float().cpu(), batch.labels.cpu(), batch.ids.cpu())
        for batch in batches
    )


@torch.no_grad()
def encode_batch(
    encode: Callable[[Tensor], Tensor],
    batch: Batch,
    *,
    device: torch.device | str,
    pool: Callable[[Tensor], Tensor] | None = None,
) -> Features:
    """The features of one batch; `stream_features` for many.

    Args:
        encode: maps inputs `[b, c, ...]` to tokens `[b, n, d]`, or to features `[b, d]`.
        batch: its first view is encoded.
        device: where `encode` lives.
        pool: maps tokens `[b, n, d]` to features `[b, d]`; `None` when `encode` does so itself.

    Raises:
        ValueError: what comes out is not one vector for each sample.
    """

    def pooled(x: Tensor) -> tuple[Tensor]:
        features = encode(x) if pool is None else pool(encode(x))
        if features.ndim != 2 or features.shape[0] != len(x):
            raise ValueError(
                f"extract_features: expected features [b, d] with b = {len(x)}, got {tuple(features.shape)}; "
                "tokens [b, n, d] need a pool, e.g. pool=MeanPool()."
            )
        return (features,)

    (features,) = in_pieces(pooled, batch.views[0], device)
    return Features(features, batch.labels.cpu(), batch.ids.cpu())


@torch.no_grad()
def in_pieces(
    encode: Callable[[Tensor], tuple[Tensor, ...]], view: Tensor, device: torch.device | str
) -> tuple[Tensor, ...]:
    """What `encode` makes of a view `[b, c, ...]`, float32 on the CPU; on a CPU 32 samples at a time.

    Args:
        encode: maps inputs `[b, c, ...]` to tensors `[b, ...]`.
        view: inputs on any device.
        device: where `encode` lives.
    """
    rows = _SAMPLES_AT_ONCE if torch.device(device).type == "cpu" else len(view)
    parts = [
        [found.float().cpu() for found in encode(x.to(device, non_blocking=True))] for x in view.split(rows)
    ]
    return tuple(each[0] if len(each) == 1 else torch.cat(each) for each in zip(*parts))


def join_features(chunks: Iterable[Features]) -> Features:
    """The features of several batches as one; refuses none at all."""
    parts = list(chunks)
    if not parts:
        raise ValueError("extract_features: there is no batch to take features from; is the data set empty?")
    return Features(
        torch.cat([part.features for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.ids for part in parts]),
    )


@contextmanager
def evaluating(encode: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put an `nn.Module`, or the one whose bound method `encode` is, into evaluation mode for a while.

    Args:
        encode: a function that is neither is left alone.
    """
    owner = encode if isinstance(encode, nn.Module) else getattr(encode, "__self__", None)
    modes = [(part, part.training) for part in owner.modules()] if isinstance(owner, nn.Module) else []
    try:
        if isinstance(owner, nn.Module):
            owner.eval()
        yield
    finally:
        for part, mode in modes:
            part.training = mode

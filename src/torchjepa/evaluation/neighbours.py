"""Nearest neighbours by cosine similarity, a chunk of queries at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from torchjepa.nn.precision import has_quick_bfloat16

_SIMILARITIES_HELD = 1 << 24  # entries of one chunk's similarity matrix: 64 MiB in float32
_QUERIES_AT_ONCE = 1024
_GROUP = 8  # columns whose maximum is looked at before they are

# Rounding the bank pays with enough queries, and a short list with a bank this much longer than it.
_LEAST_QUERIES = 1024
_LEAST_BANK = 256
_ROUNDED_QUERIES_AT_ONCE = 256  # so that the vectors on their short lists, 23 MiB at d = 384, stay in a cache
_ROUNDED_ROWS_AT_ONCE = 256  # of the bank
_BFLOAT16_UNIT = 2.0**-8  # greatest relative error of rounding to bfloat16


@torch.no_grad()
def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows of `bank` most similar to each query, s(q, x) = q.x / (|q| |x|), most similar first.

    A zero vector has similarity 0 to everything. Which of several equal similarities comes first, or comes at
    all, is not defined; equal means to within float32 rounding. The n_q x n similarity matrix is never held whole.

    Where the CPU multiplies bfloat16 in hardware, rounded vectors give a short list for each query, and
    float32 decides within it. A bound on what rounding can change says whether any neighbour may be missing
    from the list; a query for which it may is compared with the whole bank in float32.

    Args:
        queries: `[n_q, d]`.
        bank: `[n, d]`.
        k: number of neighbours, 1 to n.

    Returns:
        Similarities, float32 `[n_q, k]`, and row numbers of `bank`, int64 `[n_q, k]`.

    Raises:
        ValueError: the shapes do not match, k is out of range, or a feature is not finite.
    """
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise ValueError(
            f"nearest: queries and bank must be [n_q, d] and [n, d] with one d, "
            f"got {tuple(queries.shape)} and {tuple(bank.shape)}."
        )
    if not 1 <= k <= bank.shape[0]:
        raise ValueError(
            f"nearest: k must be from 1 to {bank.shape[0]}, the samples to choose from, got {k}."
        )
    require_finite(queries, "queries")
    require_finite(bank, "bank")
    bank = F.normalize(bank.float(), dim=1)
    rounds = _pays_to_round(queries, bank, k)
    chunk = min(
        max(1, _SIMILARITIES_HELD // len(bank)), _ROUNDED_QUERIES_AT_ONCE if rounds else _QUERIES_AT_ONCE
    )
    whole = _Whole(bank, k, min(chunk, len(queries)))
    rounded = _Rounded(bank, k, min(chunk, len(queries))) if rounds else None
    parts = []
    for rows in queries.split(chunk):
        rows = F.normalize(rows.float(), dim=1)
        if rounded is None:
            parts.append(whole.nearest(rows))
            continue
        part, unsure = rounded.nearest(rows)
        parts.append(part)
        if len(unsure):
            for listed, found in zip(part, whole.nearest(rows[unsure])):
                listed[unsure] = found
        if 2 * len(unsure) > len(rows):  # features that bfloat16 cannot tell apart
            rounded = None
    return torch.cat([values for values, _ in parts]), torch.cat([indices for _, indices in parts])


class _Whole:
    # All similarities of a chunk, in memory that is asked for once: fresh pages would cost a third of the product.
    def __init__(self, bank: Tensor, k: int, chunk: int) -> None:
        self.bank, self.k = bank, k
        self.held = bank.new_empty(chunk, len(bank))

    def nearest(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return _largest(torch.mm(rows, self.bank.T, out=self.held[: len(rows)]), self.k)


def _largest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    # The k largest of a row lie in the k groups of columns with the largest maxima. Maxima are found at the speed of
    # memory, and the k largest of them in the same way. Group i is the columns i, i + g, i + 2 g, ..., so that the
    # maxima are taken between contiguous pieces.
    num_rows, n = similarity.shape
    num_groups = n // _GROUP
    if num_groups < 4 * k:
        top = similarity.topk(k, dim=1)
        return top.values, top.indices
    maxima = similarity[:, : num_groups * _GROUP].unflatten(1, (_GROUP, num_groups)).amax(dim=1)
    _, groups = _largest(maxima, k)
    offsets = num_groups * torch.arange(_GROUP, device=similarity.device)
    inside = (groups[:, None, :] + offsets[:, None]).flatten(1)
    beyond = torch.arange(num_groups * _GROUP, n, device=similarity.device).expand(num_rows, -1)
    columns = torch.cat([inside, beyond], dim=1)
    top = similarity.gather(1, columns).topk(k, dim=1)
    return top.values, columns.gather(1, top.indices)


def _pays_to_round(queries: Tensor, bank: Tensor, k: int) -> bool:
    long_enough = len(queries) >= _LEAST_QUERIES and len(bank) >= _LEAST_BANK * _num_listed(k)
    return bank.device.type == "cpu" and has_quick_bfloat16() and long_enough


def _num_listed(k: int) -> int:
    return max(3 * k, 32)


class _Rounded:
    # q.x = (q - m).(x - m) + m.(x - m) + q.m for the mean m of the bank. The last term is the same for every x.
    # Rounding the first is an error relative to the spread of the features and not to their length. The second, a
    # bias of x, rides along in two more dimensions, its high and its low bits, against ones in the query.
    def __init__(self, bank: Tensor, k: int, chunk: int) -> None:
        n, d = bank.shape
        self.bank, self.k = bank, k
        self.mean = bank.mean(dim=0)
        self.columns = bank.new_empty(d + 2, n, dtype=torch.bfloat16)
        self.held = bank.new_empty(chunk, n, dtype=torch.bfloat16)
        greatest = []
        for start in range(0, n, _ROUNDED_ROWS_AT_ONCE):
            rows = slice(start, start + _ROUNDED_ROWS_AT_ONCE)
            centred = bank[rows] - self.mean
            bias = centred @ self.mean
            rounded, high = centred.bfloat16(), bias.bfloat16()
            low = (bias - high.float()).bfloat16()
            self.columns[:d, rows], self.columns[d, rows], self.columns[d + 1, rows] = rounded.T, high, low
            lengths = centred.norm(dim=1), (centred - rounded.float()).norm(dim=1)
            greatest.append(
                torch.stack([each.max() for each in (*lengths, (bias - high.float() - low.float()).abs())])
            )
        self.length, self.error, self.bias_error = torch.stack(greatest).amax(dim=0).tolist()
        # Float32 sums of d products of vectors no longer than 2, at their worst; here and in mean and bias.
        self.bias_error += 2.0**-21 * (d + 8)

    def nearest(self, rows: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        scores, errors = self.scores(rows)
        scores, listed = _largest(scores, _num_listed(self.k))
        candidates = self.bank.index_select(0, listed.flatten()).unflatten(0, listed.shape)
        top = torch.bmm(rows[:, None], candidates.mT)[:, 0].topk(self.k, dim=1)
        # What is not listed has at most the last score on the list.
        kth, last = scores[:, self.k - 1].float(), scores[:, -1].float()
        at_least = kth - _BFLOAT16_UNIT * kth.abs() - errors
        left_out = last + _BFLOAT16_UNIT * last.abs() + errors
        unsure = torch.nonzero(at_least <= left_out)[:, 0]
        return (top.values, listed.gather(1, top.indices)), unsure

    def scores(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Bfloat16 q.x - q.m `[q, n]`, and for each row the greatest error before its last rounding."""
        centred = rows - self.mean
        rounded = centred.bfloat16()
        extended = torch.cat([rounded, rounded.new_ones(len(rows), 2)], dim=1)
        scores = torch.mm(extended, self.columns, out=self.held[: len(rows)])
        # |a.b - a'.b'| <= |a - a'| |b| + |a'| |b - b'|
        of_query = (centred - rounded.float()).norm(dim=1) * self.length
        of_bank = rounded.float().norm(dim=1) * self.error
        return scores, of_query + of_bank + self.bias_error


def require_finite(features: Tensor, name: str) -> None:
    """Refuse features `[n, d]` that hold NaN or Inf, and count them.

    Args:
        features: `[n, d]`.
        name: what to call them in the message.

    Raises:
        ValueError: some are not finite.
    """
    # A finite sum has finite terms; where it is not, they are looked at one by one (the sum may just overflow).
    if bool(torch.isfinite(features.sum())):
        return
    bad = ~torch.isfinite(features)
    if bool(bad.any()):
        raise ValueError(
            f"{name}: {int(bad.sum())} of {bad.numel()} values in {int(bad.any(dim=1).sum())} of "
            f"{bad.shape[0]} samples are NaN or Inf; the encoder has diverged: judge an earlier checkpoint."
        )

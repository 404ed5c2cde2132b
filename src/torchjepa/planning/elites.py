"""Candidates and what they cost: the good ones, and the costs that are none.

Axis letters of this file: `s` candidate sequences of one problem, `k` elites among them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from torchjepa import _vector_math as _vector_math


class Found(NamedTuple):
    """An action sequence of each problem `[b, t, a]`, and its cost `[b]`."""

    actions: Float[Tensor, "b t a"]
    cost: Float[Tensor, " b"]


class Priced(NamedTuple):
    """Costs of candidates without NaN: an invalid one is infinite, and marked."""

    costs: Float[Tensor, "b s"]
    invalid: Bool[Tensor, "b s"]


class Elites(NamedTuple):
    """The cheapest candidates, best first `[b, k, t, a]`, and the weight of every candidate: 1 if among them, or 0."""

    sequences: Float[Tensor, "b k t a"]
    costs: Float[Tensor, "b k"]
    weights: Float[Tensor, "b s"]

    @property
    def best(self) -> Found:
        """The best of them."""
        return Found(self.sequences[:, 0], self.costs[:, 0])


def priced(costs: Float[Tensor, "b s"]) -> Priced:
    """Costs with NaN and minus infinity, which a search would mistake for good ones, made infinite."""
    invalid = costs.isnan() | costs.isneginf()
    return Priced(costs.where(~invalid, torch.inf), invalid)


def choose_elites(candidates: Float[Tensor, "b s t a"], priced: Priced, num: int) -> Elites:
    """The `num` cheapest candidates; those of infinite cost come last and weigh nothing."""
    costs, index = priced.costs.topk(num, dim=1, largest=False)
    weights = torch.zeros_like(priced.costs).scatter(1, index, costs.isfinite().to(costs.dtype))
    return Elites(candidates.take_along_dim(index[:, :, None, None], dim=1), costs, weights)


def cheaper(one: Found | None, other: Found) -> Found:
    """For each problem the cheaper of two, the first where they cost the same."""
    if one is None:
        return other
    better = other.cost < one.cost
    return Found(other.actions.where(better[:, None, None], one.actions), torch.minimum(other.cost, one.cost))

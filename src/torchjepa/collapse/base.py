"""The collapse-regularizer contract, and what the built-in ones share; a user's own needs no base."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class RegularizerTerms(Protocol):
    """What `compute` gives: a frozen dataclass of named scalars, already weighted."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def total(self) -> Float[Tensor, ""]:
        """The sum of the terms."""
        ...


@runtime_checkable
class CollapseRegularizer(Protocol):
    """The contract: named weighted terms for two views of a batch, differentiable in both.

    Computed in float32 or wider whatever the autocast state, from the statistics of the global batch when
    torch.distributed is initialised.
    """

    def compute(self, z_a: Float[Tensor, "n d"], z_b: Float[Tensor, "n d"]) -> RegularizerTerms:
        """The named, weighted terms."""
        ...

    def loss(self, z_a: Float[Tensor, "n d"], z_b: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """The sum of the terms."""
        ...


def named_terms(terms: RegularizerTerms) -> dict[str, Tensor]:
    """The terms by name, detached, for a log.

    Args:
        terms: what a regularizer's `compute` gave.
    """
    return {field.name: getattr(terms, field.name).detach() for field in dataclasses.fields(terms)}


@dataclass(frozen=True)
class WeightedTerms:
    """Base of the built-in terms: every field is a weighted scalar, and their sum is the total."""

    def total(self) -> Float[Tensor, ""]:
        """The sum of the terms, a scalar with its graph."""
        return reduce(add, (getattr(self, field.name) for field in dataclasses.fields(self)))


class AbstractCollapseRegularizer(ABC):
    """Base of the built-in regularizers: gives `loss` from `compute`."""

    @abstractmethod
    def compute(self, z_a: Float[Tensor, "n d"], z_b: Float[Tensor, "n d"]) -> WeightedTerms:
        """The named, weighted terms."""

    def loss(self, z_a: Float[Tensor, "n d"], z_b: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """The sum of the weighted terms, a scalar with its graph.

        Args:
            z_a: embeddings of the first view, `[n, d]`.
            z_b: embeddings of the second view, `[n, d]`; row i is another view of the sample of z_a's row i.

        Raises:
            ValueError: as `compute`.
        """
        return self.compute(z_a, z_b).total()

"""The collapse-regularizer contract, and what the built-in ones share; a user's own needs no base."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from torchjepa.collapse.samples import Over, Samples, autocast_off, check_finite, group_samples


@runtime_checkable
class RegularizerTerms(Protocol):
    """What `compute` gives: a frozen dataclass of named scalars, already weighted."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def total(self) -> Float[Tensor, ""]:
        """The sum of the terms."""
        ...


@runtime_checkable
class CollapseRegularizer(Protocol):
    """The contract: named weighted terms for the views of a batch, differentiable in each of them.

    Computed in float32 or wider whatever the autocast state, from the statistics of the global batch when
    torch.distributed is initialised.
    """

    def compute(self, *views: Float[Tensor, "n d"]) -> RegularizerTerms:
        """The named, weighted terms."""
        ...

    def loss(self, *views: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        """The sum of the terms."""
        ...


def named_terms(terms: RegularizerTerms) -> dict[str, Tensor]:
    """The terms by name, detached, for a log.

    Args:
        terms: what a regularizer's `compute` gave; where it has a method `named_terms`, that decides.
    """
    own = getattr(terms, "named_terms", None)
    if own is not None:
        return {name: term.detach() for name, term in own().items()}
    return {field.name: getattr(terms, field.name).detach() for field in dataclasses.fields(terms)}


@dataclass(frozen=True)
class WeightedTerms:
    """Base of the built-in terms: every field is a weighted scalar, and their sum is the total."""

    def total(self) -> Float[Tensor, ""]:
        """The sum of the terms, a scalar with its graph."""
        return reduce(add, vars(self).values())


T = TypeVar("T", bound=WeightedTerms)


class AbstractCollapseRegularizer(ABC):
    """Base of the built-in regularizers: checks and groups the views, and gives `compute` and `loss` from `terms`.

    A subclass is a dataclass with a field `over`: "batch" takes statistics over the samples (views `[n, d]`, or
    `[b, t, d]`: at every time step over the batch, then the mean over time steps); "time" over the steps of every
    sequence of `[b, t, d]`, then the mean over the batch; "both" is the mean of the two losses.
    """

    over: Over
    num_views: ClassVar[tuple[int, int | None]] = (2, 2)
    min_samples: ClassVar[int] = 2

    @abstractmethod
    def terms(self, samples: Samples) -> WeightedTerms:
        """The named, weighted terms of views that are grouped along one axis.

        Args:
            samples: the checked views, float32 or wider, autocast off.
        """

    def compute(self, *views: Float[Tensor, "*axes d"]) -> WeightedTerms:
        """The named, weighted terms.

        Args:
            views: embeddings of the samples, one tensor a view, `[n, d]` or `[b, t, d]`, any floating dtype;
                computed in float32 or wider. Row i of every view belongs to the same sample.

        Raises:
            ValueError: another number of views than the regularizer takes; shapes that differ or are neither
                `[n, d]` nor `[b, t, d]`; fewer samples than the statistics need; an integer dtype; NaN or
                infinity (`NonFiniteError`; on the CPU, elsewhere the loss is NaN).
        """
        name = type(self).__name__
        groups = group_samples(name, views, self.over, num_views=self.num_views, min_samples=self.min_samples)
        with autocast_off(views[0].device):
            terms = _mean_terms([self.terms(samples) for samples in groups])
            check_finite(name, vars(terms).values(), views)
        return terms

    def loss(self, *views: Float[Tensor, "*axes d"]) -> Float[Tensor, ""]:
        """The sum of the weighted terms, a scalar with its graph.

        Args:
            views: as for `compute`.

        Raises:
            ValueError: as `compute`.
        """
        return self.compute(*views).total()


def _mean_terms(parts: Sequence[T]) -> T:
    if len(parts) == 1:
        return parts[0]
    names = [field.name for field in dataclasses.fields(parts[0])]
    means = {name: sum(getattr(part, name) for part in parts) / len(parts) for name in names}
    return dataclasses.replace(parts[0], **means)

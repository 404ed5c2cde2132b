"""Several regularizers as one: a weighted sum of parts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import reduce
from operator import add

from jaxtyping import Float
from torch import Tensor, nn

from torchjepa.collapse.base import CollapseRegularizer, RegularizerTerms, named_terms
from torchjepa.collapse.samples import check_weights
from torchjepa.collapse.stateful import ModuleDataclass


@dataclass(frozen=True)
class SumLoss:
    """The terms of every part, each times the weight of its part.

    Args:
        parts: the terms of each part, before the weight of the part.
        weights: of each part.
        labels: a name for each part.
    """

    parts: tuple[RegularizerTerms, ...]
    weights: tuple[float, ...]
    labels: tuple[str, ...]

    def total(self) -> Float[Tensor, ""]:
        """The sum of the terms, a scalar with its graph."""
        return reduce(add, (weight * part.total() for weight, part in zip(self.weights, self.parts)))

    def named_terms(self) -> dict[str, Float[Tensor, ""]]:
        """The weighted terms by name, detached: a term's own, behind its part's where two parts have it."""
        terms = [named_terms(part) for part in self.parts]
        count = Counter(name for part in terms for name in part)
        return {
            name if count[name] == 1 else f"{label}_{name}": weight * value
            for part, weight, label in zip(terms, self.weights, self.labels)
            for name, value in part.items()
        }


@dataclass(eq=False)
class Sum(ModuleDataclass):
    """The weighted sum of regularizers as one regularizer: L = sum_i weights_i L_i(z_1, ..., z_v).

    All parts see all views. Parts may run over different axes (`Sum((SIGReg(), SIGReg(over="time")))`); parts with a
    state keep it in this module's state dict. A term is named as in its part, and where two parts have a term of one
    name, `<part>_<term>` with the part's class in lower case, numbered where classes repeat: `sigreg_sigreg` and
    `sigreg2_sigreg`.

    Cost: the sum of the parts'.

    Args:
        parts: the regularizers, any objects with `compute` and `loss`.
        weights: of each part; 1 each when empty.

    Raises:
        ValueError: no parts, another number of weights, a weight that is negative or not finite, a part without
            `compute`, or parts that no number of views fits.
    """

    parts: tuple[CollapseRegularizer, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self.parts = tuple(self.parts)
        self.weights = tuple(self.weights) or (1.0,) * len(self.parts)
        if not self.parts or len(self.weights) != len(self.parts):
            raise ValueError(
                f"Sum: needs at least one part and a weight for each, got {len(self.parts)} part(s) and "
                f"{len(self.weights)} weight(s)."
            )
        check_weights("Sum", **{f"weights[{i}]": weight for i, weight in enumerate(self.weights)})
        for i, part in enumerate(self.parts):
            if not isinstance(part, CollapseRegularizer):
                raise ValueError(
                    f"Sum: parts[{i}] must have compute(*views) and loss(*views), got {type(part).__name__}."
                )
            if isinstance(part, nn.Module):
                self.add_module(str(i), part)
        least, most = self.num_views
        if most is not None and least > most:
            wanted = ", ".join(f"{type(part).__name__} {_views_of(part)}" for part in self.parts)
            raise ValueError(f"Sum: no number of views fits all parts; (least, most) of each: {wanted}.")

    @property
    def num_views(self) -> tuple[int, int | None]:
        """The smallest and the largest number of views that all parts take, `None` for no limit."""
        least, most = zip(*map(_views_of, self.parts))
        limits = [limit for limit in most if limit is not None]
        return max(least), min(limits) if limits else None

    @property
    def _labels(self) -> tuple[str, ...]:
        names = [type(part).__name__.lower() for part in self.parts]
        before = [names[:i].count(name) for i, name in enumerate(names)]
        return tuple(f"{name}{num + 1}" if num else name for name, num in zip(names, before))

    def compute(self, *views: Float[Tensor, "*axes d"]) -> SumLoss:
        """The named, weighted terms of all parts.

        Args:
            views: embeddings of the samples, one tensor a view, as the parts take them.

        Raises:
            ValueError: as the parts.
        """
        return SumLoss(tuple(part.compute(*views) for part in self.parts), self.weights, self._labels)

    def loss(self, *views: Float[Tensor, "*axes d"]) -> Float[Tensor, ""]:
        """The sum of the weighted terms, a scalar with its graph.

        Args:
            views: as for `compute`.

        Raises:
            ValueError: as the parts.
        """
        return self.compute(*views).total()


def _views_of(part: CollapseRegularizer) -> tuple[int, int | None]:
    """How many views a part takes; one that does not say is left to refuse by itself."""
    return getattr(part, "num_views", (1, None))

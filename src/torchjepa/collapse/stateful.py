"""Regularizers with state: a count of calls that draws are keyed by, kept in the state dict of the learner."""

from __future__ import annotations

from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchjepa.collapse.base import AbstractCollapseRegularizer, WeightedTerms


class ModuleDataclass(nn.Module):
    """Base of a module that is a dataclass, so that recipes read its fields and learners keep its state.

    A subclass is decorated with `@dataclass(eq=False)`: modules are told apart by identity.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: D102
        # The generated __init__ assigns fields straight away, and a field that is a module needs a module's dicts.
        module = super().__new__(cls)
        nn.Module.__init__(module)
        return module


class CountingRegularizer(AbstractCollapseRegularizer, ModuleDataclass):
    """Base of a regularizer whose draws are fresh at every call: functions of its seed and of `num_calls`.

    `num_calls` goes up by one with each `compute` in training mode (`.train()`, the default) and stays where it is
    in evaluation mode. It is the whole state: a resumed run draws what the killed one would have drawn, and every
    process draws the same.
    """

    num_calls: int = 0

    def compute(self, *views: Float[Tensor, "*axes d"]) -> WeightedTerms:
        """The named, weighted terms; in training mode the next call draws anew.

        Args:
            views: embeddings of the samples, one tensor a view, `[n, d]` or `[b, t, d]`, any floating dtype;
                computed in float32 or wider.

        Raises:
            ValueError: as `AbstractCollapseRegularizer.compute`.
        """
        terms = super().compute(*views)
        if self.training:
            self.num_calls += 1
        return terms

    def get_extra_state(self) -> Tensor:
        """The number of calls so far as a scalar int64 tensor, what the state dict keeps."""
        return torch.tensor(self.num_calls, dtype=torch.int64)

    def set_extra_state(self, state: Tensor) -> None:
        """Continue from a state dict.

        Args:
            state: what `get_extra_state` gave.
        """
        self.num_calls = int(state)

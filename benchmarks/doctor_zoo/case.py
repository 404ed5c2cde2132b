"""What a case of the zoo is: how it is made, what the doctor should say, and how the label is earned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from torchjepa.rng import derive_seed

HEALTHY = "healthy"
COMPLETE = "complete collapse"
DIMENSIONAL = "dimensional collapse"
TOKEN = "token collapse"
TEMPORAL = "temporal collapse"
COPIES = "predictor copies"
DRIFT = "target drift"
WARMING_UP = "still warming up"
TOO_FEW = "too few samples to tell"
BROKEN = (COMPLETE, DIMENSIONAL, TOKEN, TEMPORAL, COPIES, DRIFT)
UNCLEAR = (WARMING_UP, TOO_FEW)


@dataclass(frozen=True)
class Scores:
    """Accuracies on test digits, 0 to 1, of an encoder and of the same network at step 0."""

    knn: float | None
    linear: float | None
    untrained_knn: float
    untrained_linear: float


@dataclass(frozen=True)
class Material:
    """What a case hands to the doctor, and what its label is judged by.

    Args:
        features: what `diagnose` takes, by name.
        history: rows of metrics.jsonl.
        scores: of a trained encoder, `None` for synthetic sets.
    """

    features: Mapping[str, Tensor]
    history: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    scores: Scores | None = None


@dataclass(frozen=True)
class Proof:
    """One measured number that the label stands on.

    Args:
        text: the number and the bound, for the table.
        holds: whether it bears the label out.
    """

    text: str
    holds: bool


@dataclass(frozen=True)
class Case:
    """One animal.

    Args:
        name: also decides which part it belongs to.
        expected: the verdict that is right.
        how: what it is, or how it was broken, in a few words.
        make: trains the run or draws the set.
        proof: judges the label by what was made.
        trained: whether it is a training run.
    """

    name: str
    expected: str
    how: str
    make: Callable[[], Material]
    proof: Callable[[Material], Proof]
    trained: bool

    @property
    def part(self) -> str:
        """`dev`, which the doctor's thresholds were chosen on, or `heldout`: a hash of the name alone, three to two."""
        return "dev" if derive_seed(0, "doctor zoo", self.name) % 5 < 3 else "heldout"

    @property
    def group(self) -> str:
        """`healthy`, `broken` or `unclear`."""
        if self.expected == HEALTHY:
            return "healthy"
        return "broken" if self.expected in BROKEN else "unclear"

"""Fit a Gaussian to the best of its own draws, again and again: what CEM and iCEM share.

Axis letters of this file: `s` candidate sequences of one problem, `k` elites among them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.planning.elites import Elites, Found, cheaper, choose_elites
from torchjepa.planning.problem import Problem, Record
from torchjepa.planning.space import check_chunk_size, check_count, check_range
from torchjepa.types import Plan

if TYPE_CHECKING:
    from torchjepa.planning.cem import CEM
    from torchjepa.planning.icem import ICEM


class Gaussian(NamedTuple):
    """A distribution of action sequences, every entry on its own: mean and standard deviation `[b, t, a]`."""

    mean: Float[Tensor, "b t a"]
    std: Float[Tensor, "b t a"]

    def sample(self, noise: Float[Tensor, "s t a"]) -> Float[Tensor, "b s t a"]:
        """Candidates from noise of unit variance."""
        return self.mean[:, None] + self.std[:, None] * noise


def fit(elites: Elites, before: Gaussian, momentum: tuple[float, float], min_std: float) -> Gaussian:
    """The elites' mean and standard deviation, mixed with those before.

    mean' = (1 - m) mean_elite + m mean, std' = max((1 - n) std_elite + n std, min_std), with the unbiased standard
    deviation. Where no elite has a finite cost nothing changes.

    Args:
        elites: the elites.
        before: the distribution that they were drawn from.
        momentum: (m, n).
        min_std: least standard deviation.
    """
    finite = elites.costs.isfinite()[:, :, None, None]
    num = finite.sum(1)
    mean = elites.sequences.where(finite, 0.0).sum(1) / num.clamp(min=1)
    squares = (elites.sequences - mean[:, None]).square().where(finite, 0.0).sum(1)
    std = (squares / (num - 1).clamp(min=1)).sqrt()
    mixed = Gaussian(
        mean.lerp(before.mean, momentum[0]), std.lerp(before.std, momentum[1]).clamp(min=min_std)
    )
    return Gaussian(*(torch.where(num > 0, after, old) for after, old in zip(mixed, before)))


Population = Callable[[int, Gaussian, Elites | None], Tensor]


def check_settings(who: str, settings: CEM | ICEM) -> None:
    """Refuse settings outside of their ranges.

    Raises:
        ValueError: a setting outside of its range; the message names it.
    """
    for name in ("num_samples", "num_elites", "num_iterations"):
        check_count(who, name, getattr(settings, name))
    check_range(who, "min_std", settings.min_std, 0.0, sys.float_info.max)
    check_chunk_size(who, settings.chunk_size)
    settings.space.std(who, settings.init_std)
    if settings.result not in ("mean", "best"):
        raise ValueError(f"{who}: result must be 'mean' or 'best', got {settings.result!r}.")
    if settings.num_elites > settings.num_samples:
        raise ValueError(
            f"{who}: num_elites must be at most num_samples {settings.num_samples}, got {settings.num_elites}."
        )


def search(
    problem: Problem,
    settings: CEM | ICEM,
    mean: Float[Tensor, "b t a"],
    momentum: tuple[float, float],
    population: Population,
) -> Plan:
    """Draw, choose, fit; a number of times.

    Args:
        problem: what is searched.
        settings: numbers of iterations and elites, the first and the least standard deviation, which result.
        mean: the first mean.
        momentum: of mean and standard deviation.
        population: the candidates of an iteration `[b, s, t, a]`, by its number, the distribution, and the elites of
            the iteration before.
    """
    std = problem.entries("init_std", settings.space.std(problem.planner, settings.init_std))
    believed, elites, best, record = Gaussian(mean, std), None, None, Record()
    for iteration in range(settings.num_iterations):
        candidates = settings.space.clamp(population(iteration, believed, elites))
        priced = problem.costs(candidates)
        elites = choose_elites(candidates, priced, settings.num_elites)
        believed = fit(elites, believed, momentum, settings.min_std)
        # Rounding can take the mean of actions within the bounds out of them.
        believed = believed._replace(mean=settings.space.clamp(believed.mean))
        record.add(priced, elites.weights)
        best = cheaper(best, elites.best)
    assert elites is not None  # there is at least one iteration
    found = Found(believed.mean, problem.costs(believed.mean[:, None]).costs[:, 0])
    if settings.result == "best":
        found = cheaper(best, found)
    sequences = torch.cat([believed.mean[:, None], elites.sequences], dim=1)
    return problem.plan(found, record.info(*believed, sequences))

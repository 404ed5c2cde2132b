"""iCEM: CEM with noise that is coloured in time, elites that stay, and a population that shrinks (Pinneri et al. 2020).

Axis letters of this file: `s` candidate sequences of one problem, `f` frequencies.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.planning.cross_entropy import Gaussian, check_settings, search
from torchjepa.planning.elites import Elites
from torchjepa.planning.problem import Problem
from torchjepa.planning.space import ActionSpace, check_range
from torchjepa.types import Cost, Dynamics, Plan


@dataclass(frozen=True)
class ICEM:
    """The improved cross-entropy method, for few samples and real time.

    As `CEM`, but the noise has the power spectrum 1 / f^beta over the horizon, so that actions push in one direction
    for a while; iteration i draws max(num_samples * decay^-i, 2 num_elites) sequences; a share of the elites competes
    again in the next iteration and, by `start`, in the next plan; the mean competes in the last one.

    Args:
        space: the actions.
        num_samples: sequences drawn for each problem in the first iteration; 100.
        num_elites: how many are fitted; 10 (the paper).
        num_iterations: 3.
        beta: exponent of the noise, 0 (white) to 4; 2 (the paper: 0.25 to 4, by task; higher for slower systems).
        decay: by which the population shrinks each iteration, at least 1; 1.25 (the paper).
        kept_elites: share of the elites that competes again; 0.3 (the paper).
        momentum: of mean and standard deviation, in [0, 1]; 0.1 (the paper).
        init_std: standard deviation of the first draws, one number or one for each entry; half of the entry's range by
            default (the paper's 0.5 in spaces of [-1, 1]), 1 where it has none.
        min_std: least standard deviation; 0 by default.
        result: the `"best"` sequence ever tried (the paper), or the last `"mean"`.
        chunk_size: the most rows (problems x samples) in one call of the dynamics; all by default.

    Raises:
        ValueError: a setting outside of its range, or more elites than samples.
    """

    space: ActionSpace
    num_samples: int = 100
    num_elites: int = 10
    num_iterations: int = 3
    beta: float = 2.0
    decay: float = 1.25
    kept_elites: float = 0.3
    momentum: float = 0.1
    init_std: float | Sequence[float] | None = None
    min_std: float = 0.0
    result: Literal["mean", "best"] = "best"
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        check_settings("ICEM", self)
        for name, low, high in (
            ("beta", 0.0, 10.0),
            ("decay", 1.0, sys.float_info.max),
            ("kept_elites", 0.0, 1.0),
            ("momentum", 0.0, 1.0),
        ):
            check_range("ICEM", name, getattr(self, name), low, high)

    @torch.no_grad()
    def plan(
        self,
        dynamics: Dynamics,
        cost: Cost,
        state: Any,
        *,
        horizon: int,
        generator: torch.Generator,
        start: Float[Tensor, "b k t a"] | None = None,
    ) -> Plan:
        """Plan `horizon` actions from each state.

        Args:
            dynamics: `(state[b, ...], action[b, a]) -> state[b, ...]`.
            cost: `(trajectory[b, t, ...]) -> [b]`.
            state: where each problem starts, `[b, ...]`.
            horizon: number of actions t.
            generator: source of the draws, which all problems share.
            start: the first of these sequences is the first mean, the next few compete in the first iteration; the
                middle of the space by default.

        Returns:
            The plan, its info a `PlanInfo`; its sequences are the mean and the last elites.

        Raises:
            ValueError: arguments that do not fit each other; `NonFiniteError` where the result has no finite cost.
        """
        problem = Problem("ICEM", dynamics, cost, state, self.space, horizon, generator, self.chunk_size)
        starts = problem.starts(start)
        num_kept = round(self.kept_elites * self.num_elites)

        def population(iteration: int, believed: Gaussian, elites: Elites | None) -> Tensor:
            num = max(round(self.num_samples * self.decay**-iteration), 2 * self.num_elites)
            noise = coloured(problem.draw(2, num), self.beta)
            again = (starts[:, 1:] if elites is None else elites.sequences)[:, :num_kept]
            last = iteration == self.num_iterations - 1
            mean = believed.mean[:, None][:, : int(last)]
            return torch.cat([again, mean, believed.sample(noise)], dim=1)

        return search(problem, self, starts[:, 0], (self.momentum, self.momentum), population)


def coloured(draws: Float[Tensor, "2 s t a"], beta: float) -> Float[Tensor, "s t a"]:
    """Noise of unit variance at every step, with power spectrum 1 / f^beta over the steps (Timmer and Koenig 1995).

    y = irfft(S), S_f = f^(-beta/2) (g_f + i h_f) at the frequencies f = 1/t, 2/t, ... of t steps, with the constant at
    the lowest frequency's strength; divided by its exact standard deviation. White for beta = 0.

    Args:
        draws: independent normal numbers; of either half only as many steps are used as there are frequencies.
        beta: the exponent.
    """
    num_steps = draws.shape[2]
    num = num_steps // 2 + 1
    index = torch.arange(num, device=draws.device).clamp(min=1)
    strength = index.to(draws.dtype).pow(-beta / 2)
    # The constant, and the highest frequency of an even number of steps, have no imaginary part.
    real_only = torch.zeros(num, dtype=torch.bool, device=draws.device)
    real_only[0] = True
    real_only[-1] |= num_steps % 2 == 0
    imaginary = draws[1, :, :num].masked_fill(real_only[:, None], 0.0)
    real = draws[0, :, :num] * torch.ones_like(strength).masked_fill(real_only, 2.0**0.5)[:, None]
    signal = torch.fft.irfft(torch.complex(real, imaginary) * strength[:, None], n=num_steps, dim=1)
    # Each frequency adds 4 strength^2 / t^2 to the variance of a step, one without imaginary part half as much.
    variance = (strength.square() * (4.0 - 2.0 * real_only)).sum() / num_steps**2
    return signal / variance.sqrt()

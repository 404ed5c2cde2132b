"""Energies: the distance between predicted and actual target tokens.

One object is the training loss, the planning cost and the anomaly score. Any object with the two methods of
`EnergyFn` will do; those here share the arithmetic around a distance over `d`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from torchjepa import _vector_math as _vector_math


@runtime_checkable
class EnergyFn(Protocol):
    """The energy contract: a scalar for training, one value a token for planning and anomaly scores."""

    def __call__(
        self,
        prediction: Float[Tensor, "*batch n d"],
        target: Float[Tensor, "*batch n d"],
        valid: Bool[Tensor, "*batch n"] | None = None,
    ) -> Float[Tensor, ""]:
        """The mean energy over all tokens, or over those that `valid` marks."""
        ...

    def per_token(
        self, prediction: Float[Tensor, "*batch n d"], target: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch n"]:
        """The energy of every token."""
        ...


class _TokenEnergy(ABC):
    """The mean over tokens of a distance over `d`, computed in float32 or wider."""

    def __call__(
        self,
        prediction: Float[Tensor, "*batch n d"],
        target: Float[Tensor, "*batch n d"],
        valid: Bool[Tensor, "*batch n"] | None = None,
    ) -> Float[Tensor, ""]:
        """The mean energy, E = sum_i v_i e_i / sum_i v_i with e the energies of the tokens.

        Args:
            prediction: predicted tokens `[..., n, d]`, any floating dtype.
            target: actual tokens, of exactly the same shape.
            valid: which tokens count, bool `[..., n]`; all of them by default. What the others hold, NaN
                included, reaches neither value nor gradient.

        Returns:
            A scalar, float32 or wider.

        Raises:
            ValueError: shapes differ, a tensor is not floating point, there is no token, or none is valid.
        """
        if valid is None:
            return self.per_token(prediction, target).mean()
        _check_pair(prediction, target)
        _check_valid(prediction, valid)
        # Zeroed before the distance and not only after: the gradient of a masked NaN would be 0 * NaN.
        kept = valid.unsqueeze(-1)
        per_token = self.per_token(prediction.where(kept, 0.0), target.where(kept, 0.0))
        return per_token.where(valid, 0.0).sum() / valid.sum()

    def per_token(
        self, prediction: Float[Tensor, "*batch n d"], target: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch n"]:
        """The energy e of every token.

        Args:
            prediction: predicted tokens `[..., n, d]`, any floating dtype.
            target: actual tokens, of exactly the same shape.

        Returns:
            `[..., n]`, float32 or wider.

        Raises:
            ValueError: shapes differ, a tensor is not floating point, or there is no token.
        """
        _check_pair(prediction, target)
        dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
        return self._distance(prediction.to(dtype), target.to(dtype))

    @abstractmethod
    def _distance(
        self, prediction: Float[Tensor, "*batch n d"], target: Float[Tensor, "*batch n d"]
    ) -> Float[Tensor, "*batch n"]:
        """The distance over the last axis."""


@dataclass(frozen=True)
class L2Energy(_TokenEnergy):
    """Mean squared difference, e = mean_d (p - t)^2."""

    def _distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).square().mean(-1)


@dataclass(frozen=True)
class LpEnergy(_TokenEnergy):
    """Mean power of the absolute difference, e = mean_d |p - t|^p / p.

    Args:
        p: the exponent, at least 1; 1 by default (V-JEPA, `loss_exp` of its configuration).

    Raises:
        ValueError: p is below 1, where the gradient is infinite at a perfect prediction.
    """

    p: float = 1.0

    def __post_init__(self) -> None:
        if not (1.0 <= self.p < math.inf):
            raise ValueError(
                f"LpEnergy: p must be a finite number of at least 1, got {self.p!r}; below 1 the gradient is "
                "infinite at a perfect prediction."
            )

    def _distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).abs().pow(self.p).mean(-1) / self.p


@dataclass(frozen=True)
class SmoothL1Energy(_TokenEnergy):
    """Mean smooth L1, e = mean_d h(p - t), h(x) = x^2 / (2 beta) if |x| < beta, |x| - beta / 2 otherwise.

    Args:
        beta: where the parabola meets the line, in units of the tokens; 1 by default (I-JEPA's loss).

    Raises:
        ValueError: beta is not a positive number.
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        if not (0.0 < self.beta < math.inf):
            raise ValueError(
                f"SmoothL1Energy: beta must be a positive number, got {self.beta!r}; for the limit beta -> 0 "
                "use LpEnergy(p=1.0)."
            )

    def _distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(prediction, target, reduction="none", beta=self.beta).mean(-1)


@dataclass(frozen=True)
class CosineEnergy(_TokenEnergy):
    """One minus the cosine of the angle between the tokens, e = 1 - p.t / (|p| |t|).

    A token no longer than `eps` has no direction: its cosine is 0, its energy 1 and its gradient 0.

    Args:
        eps: the length at which a token counts as zero; 1e-8 by default (as torch's cosine similarity).

    Raises:
        ValueError: eps is not a positive number.
    """

    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not (0.0 < self.eps < math.inf):
            raise ValueError(f"CosineEnergy: eps must be a positive number (1e-8, say), got {self.eps!r}.")

    def _distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        return 1.0 - (self._direction(prediction) * self._direction(target)).sum(-1)

    def _direction(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        # `<=` and not the complement of `>`: NaN must fall through to the division and stay NaN.
        return torch.where(length <= self.eps, 0.0, x / length.clamp(min=self.eps))


def _check_pair(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape:
        raise ValueError(
            f"energy: prediction and target must have the same shape, got {tuple(prediction.shape)} and "
            f"{tuple(target.shape)}; nothing is broadcast, expand one of them first."
        )
    for name, tensor in (("prediction", prediction), ("target", target)):
        if not tensor.is_floating_point():
            raise ValueError(f"energy: {name} must be floating point, got {tensor.dtype}; cast it first.")
    if prediction.ndim == 0 or prediction.numel() == 0:
        raise ValueError(
            f"energy: prediction and target must hold at least one token [..., n, d], got shape "
            f"{tuple(prediction.shape)}; the mean over nothing is undefined, skip such a batch."
        )


def _check_valid(prediction: Tensor, valid: Tensor) -> None:
    if valid.dtype != torch.bool or valid.shape != prediction.shape[:-1]:
        raise ValueError(
            f"energy: valid must be bool of shape {tuple(prediction.shape[:-1])}, one entry a token, got "
            f"{valid.dtype} of shape {tuple(valid.shape)}."
        )
    # The one flag read from the device, and only when `valid` is given; a compiled graph leaves it out.
    if not torch.compiler.is_compiling() and not bool(valid.any()):
        raise ValueError(
            "energy: valid marks no token; the mean over nothing is undefined, skip such a batch."
        )

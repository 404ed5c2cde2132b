"""The contract check of an energy, for the built-in ones and a user's own."""

from __future__ import annotations

import torch
from torch import Tensor

from torchjepa import rng
from torchjepa.energy import EnergyFn
from torchjepa.testing.contract import require, require_value_error


def check_energy(energy: EnergyFn) -> None:
    """Check that an object keeps the contract of an energy.

    A finite scalar that is the mean of `per_token` over the valid tokens, least at a perfect prediction, with
    the right and finite gradient, in float32 or wider, refusing shapes that differ and empty sets.

    Args:
        energy: the object under test, called as `energy(prediction, target, valid=None)`.

    Raises:
        AssertionError: a requirement is broken; the message says which.
    """
    _check_values(energy)
    _check_tokens_are_independent(energy)
    _check_valid(energy)
    _check_gradient(energy)
    _check_precision(energy)
    _check_refusals(energy)


def _tokens(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = rng.generator(0, "check_energy")
    prediction, target = torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return prediction, target


def _check_values(energy: EnergyFn) -> None:
    for shape in ((5, 4), (2, 5, 4), (2, 3, 5, 4), (1, 1)):
        prediction, target = _tokens(*shape)
        before = prediction.clone(), target.clone()
        value, per_token = energy(prediction, target), energy.per_token(prediction, target)
        require(value.shape == (), energy, f"the energy must be a scalar, got shape {tuple(value.shape)}.")
        require(
            per_token.shape == prediction.shape[:-1],
            energy,
            f"per_token of {shape} must have shape {shape[:-1]}, got {tuple(per_token.shape)}.",
        )
        require(bool(per_token.isfinite().all()), energy, f"per_token of normal {shape} is not finite.")
        require(
            torch.allclose(value, per_token.mean()),
            energy,
            f"the energy must be the mean of per_token, got {value:.6g} and {per_token.mean():.6g}.",
        )
        require(
            torch.equal(prediction, before[0]) and torch.equal(target, before[1]),
            energy,
            "the inputs were changed in place.",
        )
        require(torch.equal(value, energy(prediction, target)), energy, "two calls give two values.")
        require(
            bool(energy(target, target) <= value),
            energy,
            "a perfect prediction must cost least; is a sign wrong?",
        )
    prediction, target = _tokens(5, 4)
    prediction[0, 0] = float("nan")
    require(bool(energy(prediction, target).isnan()), energy, "NaN in the prediction must stay NaN.")


def _check_tokens_are_independent(energy: EnergyFn) -> None:
    prediction, target = _tokens(2, 5, 4)
    changed = prediction.clone()
    changed[:, 2] += 1.0
    others = [0, 1, 3, 4]
    same = torch.allclose(
        energy.per_token(prediction, target)[:, others], energy.per_token(changed, target)[:, others]
    )
    require(same, energy, "the energy of a token must not depend on the other tokens.")


def _check_valid(energy: EnergyFn) -> None:
    prediction, target = _tokens(2, 5, 4)
    valid = torch.tensor([[True, False, True, True, False], [False, True, False, False, False]])
    expected = energy.per_token(prediction, target)[valid].mean()
    value = energy(prediction, target, valid)
    require(
        torch.allclose(value, expected),
        energy,
        f"with `valid` the energy must be the mean over valid tokens, {expected:.6g}, got {value:.6g}.",
    )
    prediction[~valid] = float("nan")
    prediction.requires_grad_()
    value = energy(prediction, target, valid)
    require(bool(value.isfinite()), energy, "NaN in a token that is not valid reached the value.")
    (grad,) = torch.autograd.grad(value, prediction)
    require(
        bool(grad.isfinite().all()) and not bool(grad[~valid].any()),
        energy,
        "a token that is not valid must get gradient 0, NaN in it included.",
    )


def _check_gradient(energy: EnergyFn) -> None:
    prediction, target = (x.requires_grad_() for x in _tokens(2, 3, 4))
    require(energy(prediction, target).requires_grad, energy, "no gradient reaches the prediction.")
    try:
        torch.autograd.gradcheck(lambda p, t: energy(p, t), (prediction, target))
    except RuntimeError as error:
        require(False, energy, f"the gradient is not the derivative of the value: {error}")
    zeros, (_, other) = torch.zeros(2, 3, 4, dtype=torch.float64), _tokens(2, 3, 4)
    for what, at, to in (
        ("a perfect prediction", other, other),
        ("a zero prediction", zeros, other),
        ("two zero vectors", zeros, zeros),
    ):
        leaf = at.clone().requires_grad_()
        (grad,) = torch.autograd.grad(energy(leaf, to), leaf)
        require(bool(grad.isfinite().all()), energy, f"the gradient at {what} must be finite.")


def _check_precision(energy: EnergyFn) -> None:
    for dtype, wide in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        prediction, target = _tokens(2, 5, 4, dtype=dtype)
        for value in (energy(prediction, target), energy.per_token(prediction, target)):
            require(value.dtype == wide, energy, f"{dtype} inputs must give {wide}, got {value.dtype}.")
        exact = energy(prediction.double(), target.double())
        require(
            torch.allclose(energy(prediction, target).double(), exact, rtol=1e-5, atol=1e-6),
            energy,
            f"{dtype} inputs must be computed in float32 or wider; the value is off.",
        )
    prediction, target = _tokens(2, 5, 4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = energy(prediction, target)
    require(
        inside.dtype == torch.float32 and torch.allclose(inside, energy(prediction, target), rtol=1e-5),
        energy,
        "autocast must not change the value; compute in float32 with autocast off.",
    )


def _check_refusals(energy: EnergyFn) -> None:
    prediction, target = _tokens(2, 5, 4)
    none = torch.zeros(2, 5, dtype=torch.bool)
    for what, p, t, valid in (
        ("a target of shape [1, n, d]", prediction, target[:1], None),
        ("a target of shape [n, d]", prediction, target[0], None),
        ("a target of another width", prediction, target[..., :1], None),
        ("an empty set of tokens", prediction[:, :0], target[:, :0], None),
        ("a `valid` that marks no token", prediction, target, none),
        ("a `valid` of another shape", prediction, target, ~none[:1]),
    ):
        require_value_error(energy, what, lambda p=p, t=t, valid=valid: energy(p, t, valid))

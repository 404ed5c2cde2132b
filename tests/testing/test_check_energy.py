"""The contract check passes every built-in energy and names what is broken in a broken one."""

import pytest
import torch
from torch import Tensor

from torchjepa.energy import CosineEnergy, EnergyFn, L2Energy, LpEnergy, SmoothL1Energy
from torchjepa.testing import check_energy


@pytest.mark.parametrize(
    "energy",
    [L2Energy(), LpEnergy(), LpEnergy(p=1.5), SmoothL1Energy(), SmoothL1Energy(beta=0.1), CosineEnergy()],
    ids=repr,
)
def test_built_in_energies_keep_the_contract(energy: EnergyFn) -> None:
    check_energy(energy)


class Sound:
    """A user's own energy without our base; each class below breaks it in one place."""

    def __call__(self, prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        return L2Energy()(prediction, target, valid)

    def per_token(self, prediction: Tensor, target: Tensor) -> Tensor:
        return L2Energy().per_token(prediction, target)


class Unreduced(Sound):
    def __call__(self, prediction, target, valid=None):
        return self.per_token(prediction, target)


class Summed(Sound):
    def __call__(self, prediction, target, valid=None):
        return 2 * super().__call__(prediction, target, valid)


class KeepsWidth(Sound):
    def per_token(self, prediction, target):
        return (prediction - target).square()


class WrongSign(Sound):
    def __call__(self, prediction, target, valid=None):
        return -super().__call__(prediction, target, valid)

    def per_token(self, prediction, target):
        return -super().per_token(prediction, target)


class Random(Sound):
    def __call__(self, prediction, target, valid=None):
        return super().__call__(prediction, target, valid) * (1 + 1e-9 * torch.rand((), dtype=torch.float64))


class InPlace(Sound):
    def __call__(self, prediction, target, valid=None):
        value = super().__call__(prediction, target, valid)
        prediction.data.mul_(1.0 + 1e-12)
        return value


class HidesNaN(Sound):
    def per_token(self, prediction, target):
        return super().per_token(prediction, target).nan_to_num()

    def __call__(self, prediction, target, valid=None):
        return super().__call__(prediction, target, valid).nan_to_num()


class MixesTokens(Sound):
    def per_token(self, prediction, target):
        return super().per_token(prediction - prediction.mean(-2, keepdim=True), target)

    def __call__(self, prediction, target, valid=None):
        return super().__call__(prediction - prediction.mean(-2, keepdim=True), target, valid)


class IgnoresValid(Sound):
    def __call__(self, prediction, target, valid=None):
        return super().__call__(prediction, target)


class LeaksInvalid(Sound):
    def __call__(self, prediction, target, valid=None):
        if valid is None:
            return super().__call__(prediction, target)
        super().__call__(prediction, target, valid)
        return self.per_token(prediction, target).where(valid, 0.0).sum() / valid.sum()


class Detached(Sound):
    def __call__(self, prediction, target, valid=None):
        value = super().__call__(prediction, target, valid)
        return value.detach() if valid is None else value


class HalfTheGradient(Sound):
    def __call__(self, prediction, target, valid=None):
        value = super().__call__(prediction, target, valid)
        return (value + value.detach()) / 2


class InfiniteAtZero(Sound):
    def per_token(self, prediction, target):
        super().per_token(prediction, target)
        return (
            (prediction - target)
            .square()
            .sum(-1)
            .sqrt()
            .to(torch.promote_types(prediction.dtype, torch.float32))
        )

    def __call__(self, prediction, target, valid=None):
        if valid is None:
            return self.per_token(prediction, target).mean()
        super().__call__(prediction, target, valid)
        kept = valid.unsqueeze(-1)
        offset = torch.where(kept, prediction, 1.0), torch.where(kept, target, 0.0)
        return self.per_token(*offset).where(valid, 0.0).sum() / valid.sum()


class LowPrecision(Sound):
    def __call__(self, prediction, target, valid=None):
        return super().__call__(prediction, target, valid).to(prediction.dtype)


class CoarseInside(Sound):
    def __call__(self, prediction, target, valid=None):
        if prediction.dtype == torch.float64:
            return super().__call__(prediction, target, valid)
        return super().__call__(prediction.bfloat16(), target.bfloat16(), valid)

    def per_token(self, prediction, target):
        if prediction.dtype == torch.float64:
            return super().per_token(prediction, target)
        return super().per_token(prediction.bfloat16(), target.bfloat16())


class Autocast(Sound):
    def __call__(self, prediction, target, valid=None):
        difference = (prediction - target).flatten()
        if valid is None and torch.is_autocast_enabled("cpu"):
            return (difference @ difference).float() / difference.numel()
        return super().__call__(prediction, target, valid)


class Broadcasts(Sound):
    def __call__(self, prediction, target, valid=None):
        if target.numel():
            target = target.expand_as(prediction)
        return super().__call__(prediction, target, valid)


class RaisesTypeError(Sound):
    def __call__(self, prediction, target, valid=None):
        try:
            return super().__call__(prediction, target, valid)
        except ValueError as error:
            raise TypeError(str(error)) from error


class AcceptsNoToken(Sound):
    def __call__(self, prediction, target, valid=None):
        if valid is not None and not valid.any():
            return prediction.new_zeros(())
        return super().__call__(prediction, target, valid)


def test_a_users_own_energy_passes() -> None:
    check_energy(Sound())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Unreduced, r"must be a scalar, got shape \(5,\)"),
        (Summed, "must be the mean of per_token"),
        (KeepsWidth, r"per_token of \(5, 4\) must have shape \(5,\), got \(5, 4\)"),
        (WrongSign, "a perfect prediction must cost least; is a sign wrong"),
        (Random, "two calls give two values"),
        (InPlace, "the inputs were changed in place"),
        (HidesNaN, "NaN in the prediction must stay NaN"),
        (MixesTokens, "must not depend on the other tokens"),
        (IgnoresValid, "must be the mean over valid tokens"),
        (LeaksInvalid, "a token that is not valid must get gradient 0"),
        (Detached, "no gradient reaches the prediction"),
        (HalfTheGradient, "the gradient is not the derivative of the value"),
        (InfiniteAtZero, "the gradient at a perfect prediction must be finite"),
        (LowPrecision, "torch.float16 inputs must give torch.float32, got torch.float16"),
        (CoarseInside, "torch.float16 inputs must be computed in float32 or wider"),
        (Autocast, "autocast must not change the value"),
        (Broadcasts, r"a target of shape \[1, n, d\] must be a ValueError, but it was accepted"),
        (RaisesTypeError, "must be a ValueError, but it raised TypeError"),
        (AcceptsNoToken, "a `valid` that marks no token must be a ValueError, but it was accepted"),
    ],
)
def test_what_is_broken_is_named(broken: type[Sound], message: str) -> None:
    with pytest.raises(AssertionError, match=f"{broken.__name__}: .*{message}"):
        check_energy(broken())

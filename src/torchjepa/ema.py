"""The exponential moving average that makes the target encoder, and its momentum schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchjepa import _vector_math as _vector_math


@dataclass(frozen=True)
class EMA:
    """Exponential moving average, target <- m(step) * target + (1 - m(step)) * online.

    Low-precision targets stall: in bfloat16, (1 - m) * (online - target) rounds to nothing for m near 1. Keep
    the weights in float32.

    Args:
        momentum: m in [0, 1], used at every step where there is no schedule (I-JEPA starts at 0.996).
        schedule: m as a function of the 0-based step; takes the place of `momentum`.

    Raises:
        ValueError: momentum is outside [0, 1].
    """

    momentum: float
    schedule: Callable[[int], float] | None = None

    def __post_init__(self) -> None:
        _check_momentum("EMA: momentum", self.momentum)

    @classmethod
    def with_cosine_schedule(cls, base_momentum: float, total_steps: int) -> EMA:
        """An EMA whose momentum rises to 1 along half a cosine.

        Args:
            base_momentum: m at step 0.
            total_steps: length of the run, in optimizer updates.
        """
        return cls(base_momentum, CosineMomentumSchedule(base_momentum, total_steps=total_steps))

    def get_momentum(self, step: int) -> float:
        """The momentum m that the update of `step` uses.

        Args:
            step: the optimizer update, counted from 0.

        Raises:
            ValueError: the step is negative, or the schedule gives a momentum outside [0, 1].
        """
        _check_step("EMA", step)
        momentum = self.momentum if self.schedule is None else self.schedule(step)
        _check_momentum(f"EMA: momentum at step {step}", momentum)
        return momentum

    def step(self, target: float, online: float, step: int) -> float:
        """The moving average of a number, m * target + (1 - m) * online.

        Args:
            target: the average so far.
            online: the new value.
            step: the optimizer update, counted from 0.
        """
        momentum = self.get_momentum(step)
        return momentum * target + (1.0 - momentum) * online

    def update_tensor(self, target: Tensor, online: Tensor, step: int) -> Tensor:
        """The moving average of a tensor as a new tensor without graph; integers and bools are copied.

        Args:
            target: the average so far, any shape.
            online: the new values, of the same shape, dtype and device.
            step: the optimizer update, counted from 0.

        Raises:
            ValueError: shape, dtype or device differ.
        """
        return self.update_tensor_pairs([(target, online)], step)[0]

    @torch.no_grad()
    def update_tensor_pairs(self, pairs: Iterable[tuple[Tensor, Tensor]], step: int) -> list[Tensor]:
        """`update_tensor` for many pairs in one fused call.

        Args:
            pairs: (target, online), as in `update_tensor`.
            step: the optimizer update, counted from 0.

        Returns:
            The new targets, in order.

        Raises:
            ValueError: shape, dtype or device differ within a pair.
        """
        pairs = list(pairs)
        for index, (target, online) in enumerate(pairs):
            _check_pair(f"pair {index}", target, online)
        targets = [target.detach().clone() for target, _ in pairs]
        _average_(targets, [online for _, online in pairs], self.get_momentum(step))
        return targets

    @torch.no_grad()
    def update_(self, target_module: nn.Module, online_module: nn.Module, step: int) -> None:
        """Move every parameter and buffer of the target towards the online module, in place.

        Floating-point tensors are averaged in one fused call for each dtype and device; integer and bool
        buffers (the counter of a batch norm, say) are copied.

        Args:
            target_module: the average; a deep copy of the online module at step 0.
            online_module: the module being trained.
            step: the optimizer update, counted from 0.

        Raises:
            ValueError: both are one module, or names, shapes, dtypes or devices differ.
        """
        if target_module is online_module:
            raise ValueError(
                "EMA: target and online are the same module; make the target with copy.deepcopy."
            )
        pairs = _pair_in_step(target_module, online_module)
        if pairs is None:
            pairs = _pair_by_name(target_module, online_module)
        targets, onlines = [target for target, _ in pairs], [online for _, online in pairs]
        _average_(targets, onlines, self.get_momentum(step))


@dataclass(frozen=True)
class CosineMomentumSchedule:
    """Momentum that rises along half a cosine (BYOL, section 3.2).

    m(t) = final - (final - base) * (1 + cos(pi * min(t, T - 1) / T)) / 2; `final` throughout when T = 0.

    Args:
        base_momentum: m at step 0.
        final_momentum: the value it rises towards; 1 by default (BYOL).
        total_steps: T, in optimizer updates.

    Raises:
        ValueError: a momentum is outside [0, 1], or T is not given or negative.
    """

    base_momentum: float
    final_momentum: float = 1.0
    total_steps: int = -1  # Python wants a default after final_momentum's; -1 is refused

    def __post_init__(self) -> None:
        _check_schedule("CosineMomentumSchedule", self.base_momentum, self.final_momentum, self.total_steps)

    def __call__(self, step: int) -> float:
        """The momentum for the update `step`, counted from 0."""
        _check_step("CosineMomentumSchedule", step)
        if self.total_steps == 0:
            return self.final_momentum
        phase = math.pi * min(step, self.total_steps - 1) / self.total_steps
        rise = self.final_momentum - self.base_momentum
        return self.final_momentum - rise * (1.0 + math.cos(phase)) / 2.0


@dataclass(frozen=True)
class LinearMomentumSchedule:
    """Momentum that rises linearly, m_i = base + i * (final - base) / T: the released I-JEPA and V-JEPA.

    The last update, i = T - 1, stays one increment short of `final`; from i = T on it is `final`.

    Args:
        base_momentum: m at step 0 (I-JEPA: 0.996; V-JEPA: 0.998).
        final_momentum: the value it rises towards; 1 by default (I-JEPA and V-JEPA).
        total_steps: T, in optimizer updates (V-JEPA stretches it by 1.25, and so ends at 0.9996).

    Raises:
        ValueError: a momentum is outside [0, 1], or T is not given or negative.
    """

    base_momentum: float
    final_momentum: float = 1.0
    total_steps: int = -1  # Python wants a default after final_momentum's; -1 is refused

    def __post_init__(self) -> None:
        _check_schedule("LinearMomentumSchedule", self.base_momentum, self.final_momentum, self.total_steps)

    def __call__(self, step: int) -> float:
        """The momentum for the update `step`, counted from 0."""
        _check_step("LinearMomentumSchedule", step)
        if step >= self.total_steps:
            return self.final_momentum
        return self.base_momentum + step * (self.final_momentum - self.base_momentum) / self.total_steps


def _average_(targets: Sequence[Tensor], onlines: Sequence[Tensor], momentum: float) -> None:
    # The fused kernels want one dtype and one device a call.
    groups: dict[tuple[torch.dtype, torch.device], tuple[list[Tensor], list[Tensor]]] = {}
    for target, online in zip(targets, onlines):
        group = groups.setdefault((target.dtype, target.device), ([], []))
        group[0].append(target)
        group[1].append(online)
    for (dtype, _), (group_targets, group_onlines) in groups.items():
        if dtype.is_floating_point or dtype.is_complex:
            torch._foreach_lerp_(group_targets, group_onlines, 1.0 - momentum)
        else:
            torch._foreach_copy_(group_targets, group_onlines)


def _pair_in_step(target: nn.Module, online: nn.Module) -> list[tuple[Tensor, Tensor]] | None:
    # Walks both modules side by side, as they are now, which takes a third of the time of naming every tensor.
    # Where they are not alike there is no answer: the names know what to say about it.
    pairs: dict[int, tuple[Tensor, Tensor]] = {}
    seen: set[tuple[int, int]] = set()  # modules may be shared, or hold each other
    pending: list[tuple[Any, Any]] = [(target, online)]
    while pending:
        a, b = pending.pop()
        if (id(a), id(b)) in seen or (a is None and b is None):
            continue
        seen.add((id(a), id(b)))
        if a is None or b is None or a._modules.keys() != b._modules.keys():
            return None
        pending += [(child, b._modules[name]) for name, child in a._modules.items()]
        for of_a, of_b in ((a._parameters, b._parameters), (a._buffers, b._buffers)):
            if of_a.keys() != of_b.keys():
                return None
            for name, x in of_a.items():
                y = of_b[name]
                if x is None and y is None:
                    continue
                if x is None or y is None or pairs.setdefault(id(x), (x, y))[1] is not y:
                    return None
    tied_alike = len({id(y) for _, y in pairs.values()}) == len(pairs)
    alike = all(x.shape == y.shape and x.dtype == y.dtype and x.device == y.device for x, y in pairs.values())
    return list(pairs.values()) if tied_alike and alike else None


def _pair_by_name(target: nn.Module, online: nn.Module) -> list[tuple[Tensor, Tensor]]:
    targets, onlines = _named_tensors(target), _named_tensors(online)
    if targets.keys() != onlines.keys():
        raise ValueError(
            "EMA: target and online must have the same parameters and buffers; only the target has "
            f"{sorted(targets.keys() - onlines.keys())[:5]}, only the online module has "
            f"{sorted(onlines.keys() - targets.keys())[:5]}. Wrappers (DDP, compile) add prefixes: pass "
            "the bare modules."
        )
    for name, tensor in targets.items():
        _check_pair(repr(name), tensor, onlines[name])
    return [(tensor, onlines[name]) for name, tensor in targets.items()]


def _named_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _check_pair(name: str, target: Tensor, online: Tensor) -> None:
    for what, of_target, of_online in (
        ("shape", tuple(target.shape), tuple(online.shape)),
        ("dtype", target.dtype, online.dtype),
        ("device", target.device, online.device),
    ):
        if of_target != of_online:
            raise ValueError(
                f"EMA: the {what}s of {name} differ, {of_target} in the target and {of_online} online; the "
                "target must be a copy of the online module."
            )


def _check_momentum(name: str, momentum: float) -> None:
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(
            f"{name} must lie in [0, 1], got {momentum!r}; 0 copies the online weights, 1 keeps the target's."
        )


def _check_step(name: str, step: int) -> None:
    if step < 0:
        raise ValueError(
            f"{name}: step must be at least 0, got {step!r}; steps count optimizer updates from 0."
        )


def _check_schedule(name: str, base: float, final: float, total_steps: int) -> None:
    _check_momentum(f"{name}: base_momentum", base)
    _check_momentum(f"{name}: final_momentum", final)
    if total_steps < 0:
        raise ValueError(
            f"{name}: total_steps must be given and at least 0, the length of the run in optimizer updates; "
            f"got {total_steps!r}."
        )

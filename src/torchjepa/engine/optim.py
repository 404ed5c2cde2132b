"""AdamW as the field uses it: fused, no decay on biases and 1-D parameters, schedules set every step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_FUSED_DEVICES = ("cuda", "cpu")


def parameter_groups(module: nn.Module) -> list[dict[str, object]]:
    """The trainable parameters in two groups: those that decay and those that do not.

    No decay for biases and tensors of at most one dimension (norm scales); `decay` says which is which.

    Args:
        module: the learner.

    Raises:
        ValueError: nothing is trainable.
    """
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not named:
        raise ValueError(f"{type(module).__name__} has no trainable parameter.")
    decayed = [parameter for name, parameter in named if _decays(name, parameter)]
    spared = [parameter for name, parameter in named if not _decays(name, parameter)]
    groups: list[dict[str, object]] = [{"params": decayed, "decay": True}, {"params": spared, "decay": False}]
    return [group for group in groups if group["params"]]


def _decays(name: str, parameter: Tensor) -> bool:
    return parameter.ndim > 1 and name.rpartition(".")[2] != "bias"


def adamw(
    module: nn.Module, *, betas: tuple[float, float], eps: float, fused: bool, device: torch.device
) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; learning rate and decay come with `set_schedules`.

    Args:
        module: the learner, on its device.
        betas: decay rates of the moments.
        eps: term in the denominator.
        fused: one kernel for all tensors, where the device has it.
        device: where the parameters are.
    """
    one_kernel = fused and device.type in _FUSED_DEVICES
    return torch.optim.AdamW(parameter_groups(module), lr=0.0, betas=betas, eps=eps, fused=one_kernel or None)


def set_schedules(optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float) -> None:
    """Set what the coming update uses.

    Args:
        optimizer: made by `adamw`.
        learning_rate: of every group.
        weight_decay: of the group that decays.
    """
    for group in optimizer.param_groups:
        group["lr"] = float(learning_rate)  # a NumPy float would keep the checkpoint from being read back
        group["weight_decay"] = float(weight_decay) if group["decay"] else 0.0

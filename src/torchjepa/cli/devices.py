"""Which device a name stands for."""

from __future__ import annotations

import torch


def pick_device(name: str) -> torch.device:
    """The device of that name.

    Args:
        name: `auto` for the best present, `gpu` for any CUDA device, or what torch calls it.

    Raises:
        ValueError: this machine does not have it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    name = "cuda" if name == "gpu" else name
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"There is no device {name!r} here ({reason}); auto takes the best present."
        ) from None
    return torch.device(name)

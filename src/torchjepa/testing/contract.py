"""What the contract checks share: a requirement with a message, an expected ValueError, the global random states."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def require(ok: bool, part: object, message: str) -> None:
    """Raise AssertionError where a part breaks its contract.

    Args:
        ok: whether the requirement holds.
        part: the part under test; its class is named in the message.
        message: what is broken.

    Raises:
        AssertionError: ok is false.
    """
    if not ok:
        raise AssertionError(f"{type(part).__name__}: {message}")


def require_value_error(part: object, what: str, call: Callable[[], Any]) -> None:
    """Raise AssertionError unless a call raises ValueError.

    Args:
        part: the part under test.
        what: the bad input in words.
        call: the call that should be refused.

    Raises:
        AssertionError: the call returned, or raised something else.
    """
    claim = f"{type(part).__name__}: {what} must be a ValueError"
    try:
        call()
    except ValueError:
        return
    except Exception as error:
        raise AssertionError(f"{claim}, but it raised {type(error).__name__}: {error}") from error
    raise AssertionError(f"{claim}, but it was accepted.")


def global_random_states() -> tuple[bytes, str, object]:
    """The states of torch's, NumPy's and Python's global generators, to be compared."""
    return torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), random.getstate()

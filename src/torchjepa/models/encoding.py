"""What learners share: encoding in the middle of training, and adding the parts of a loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from torchjepa.types import Loss


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode and give every part of it its own mode back afterwards.

    Args:
        module: the network; a part that was frozen in evaluation mode stays so.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def add_losses(local: Loss | None, joint: Loss) -> Loss:
    """The loss of a learner that splits: totals added, terms and features side by side.

    Args:
        local: what is a mean over samples, if anything.
        joint: what couples samples.
    """
    if local is None:
        return joint
    return Loss(
        local.total + joint.total, {**local.terms, **joint.terms}, {**local.features, **joint.features}
    )

"""What the formats that trace a network share: lower precision behind the same inputs, and open axes."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.onnx.errors import OnnxExporterError

from torchjepa.hub.parts import Part


class _Halved(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = self.network(*(value.half() if value.is_floating_point() else value for value in inputs))
        return tuple(value.float() for value in (found if isinstance(found, tuple) else (found,)))


def halved(part: Part) -> Part:
    """The part with weights and arithmetic in float16; inputs and outputs stay what they are."""
    return replace(part, network=_Halved(part.network).eval())


def open_axes(part: Part) -> tuple[Any, ...]:
    """The part's free axes as `torch.export` takes them; axes of one name are of one length."""
    names = {name for axes in part.free.values() for name in axes.values()}
    dims = {name: Dim(name, min=1, max=2**20) for name in sorted(names)}
    axes = tuple({axis: dims[name] for axis, name in part.free.get(key, {}).items()} for key in part.inputs)
    return (axes,) if isinstance(part.network, _Halved) else axes  # its arguments are one tuple


@contextmanager
def quiet_tracing(part: Part) -> Iterator[None]:
    """Trace without a gradient and without the tracers' remarks; their errors become one line.

    Raises:
        ValueError: the network cannot be traced.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (OnnxExporterError, UserError, GuardOnDataDependentSymNode) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(f"export: {part.name} cannot be traced: {reason}") from error
    finally:
        logging.disable(before)

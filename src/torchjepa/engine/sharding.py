"""FSDP2: a learner's tensors cut into shards over the processes, and put together again.

torch's `fully_shard` changes modules for good, while hooks and the judge want the learner that they know. So a twin
is trained in its stead: it takes over the tensors, and the learner keeps their shapes only (on the meta device, where
a look at a value is an error) until the twin fills it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchjepa.engine.buckets import broadcast_from_first

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is one process' view of a tensor that several hold together, a DTensor.

    Args:
        tensor: any.
    """
    # Asked by its method: importing torch.distributed.tensor takes longer than all of ours.
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is sharded, else the tensor; all processes must ask.

    Args:
        tensor: any.
    """
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory.

    Args:
        tensor: any.
    """
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, cut as another one is; every process cuts its own part, which shares its memory.

    Args:
        tensor: whole, the same on every process.
        like: of the same shape.
    """
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def whole_tree(tree: Any, keep: bool) -> Any:
    """Nested dictionaries and lists with every sharded tensor gathered to the CPU; all processes must ask.

    Args:
        tree: what holds the tensors.
        keep: whether this process wants the result; it gets `None` in the place of tensors otherwise.
    """
    if isinstance(tree, Mapping):
        return {name: whole_tree(value, keep) for name, value in tree.items()}
    if isinstance(tree, list):
        return [whole_tree(value, keep) for value in tree]
    if not isinstance(tree, Tensor) or not is_sharded(tree):
        return tree
    gathered = whole(tree)
    return gathered.cpu() if keep else None


def find_units(module: nn.Module) -> list[nn.Module]:
    """What is gathered and freed as one: every entry of an `nn.ModuleList`, the inner ones first.

    Blocks of transformers and the like, of the encoder, its target and the predictor alike. What is in no list
    belongs to the root, which stays gathered from the forward to the end of the backward pass.

    Args:
        module: a learner.
    """
    entries = [
        entry
        for part in module.modules()
        if isinstance(part, nn.ModuleList)
        for entry in part
        if not isinstance(entry, (nn.ModuleList, nn.ModuleDict)) and any(True for _ in entry.parameters())
    ]
    return list(reversed(dict.fromkeys(entries)))


def shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Cut every parameter along its first axis over the processes, in place; the first process' values count.

    Args:
        module: moves to the mesh's device unit by unit, so that no device ever holds the whole.
        mesh: of one dimension.
    """
    from torch.distributed.fsdp import fully_shard

    for unit in (*find_units(module), module):
        fresh = [parameter for parameter in unit.parameters() if not is_sharded(parameter)]
        for parameter in fresh:
            parameter.data = parameter.data.to(mesh.device_type)
        broadcast_from_first(parameter.data for parameter in fresh)
        fully_shard(unit, mesh=mesh)
    return module


class Twin:
    """Trains in a learner's stead where the tensors are sharded.

    Args:
        learner: loses its tensors, but for buffers that are in no state dict.
        is_main: whether this process' learner is to be filled.

    Attributes:
        module: the twin, a copy of the learner around the very same tensors.
    """

    def __init__(self, learner: nn.Module, is_main: bool) -> None:
        self._learner, self._is_main = learner, is_main
        tensors = [*learner.parameters(), *learner.buffers()]
        self.module = copy.deepcopy(learner, {id(tensor): tensor for tensor in tensors})
        if is_main and not find_units(learner):
            warnings.warn(
                f"{type(learner).__name__} holds no nn.ModuleList, so strategy fsdp gathers all of it at once; "
                "only optimizer state and gradients are spread.",
                stacklevel=2,
            )
        self._empty()

    def fill(self, device: torch.device) -> None:
        """Give the main process' learner all weights as they are now; all processes must ask.

        Args:
            device: where the learner shall be.
        """
        tensors = {}
        for name, value in self.module.state_dict().items():
            gathered = whole(value)
            if self._is_main:
                tensors[name] = gathered if is_sharded(value) else gathered.clone()
        if self._is_main:
            self._learner.load_state_dict(tensors, assign=True)
            self._learner.to(device)

    @contextmanager
    def filled(self, device: torch.device) -> Iterator[None]:
        """The learner has its weights for a while; all processes must ask.

        Args:
            device: where the learner shall be.
        """
        self.fill(device)
        try:
            yield
        finally:
            self._empty()

    def _empty(self) -> None:
        learner = self._learner
        named = (
            *learner.named_parameters(remove_duplicate=False),
            *learner.named_buffers(remove_duplicate=False),
        )
        held = {name for name, _ in named}  # not what a part calls its extra state
        state = learner.state_dict()
        shapes = {name: value.to("meta") if name in held else value for name, value in state.items()}
        learner.load_state_dict(shapes, assign=True)

"""Counts what the processes tell each other: calls and bytes of every collective operation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The argument of torch's c10d operators that holds the whole: what is gathered, or what is reduced.
_WHOLE = {
    "allreduce_": ("all-reduce", 0),
    "allreduce_coalesced_": ("all-reduce", 0),
    "broadcast_": ("broadcast", 0),
    "_allgather_base_": ("all-gather", 0),
    "allgather_": ("all-gather", 0),
    "allgather_into_tensor_coalesced_": ("all-gather", 0),
    "_reduce_scatter_base_": ("reduce-scatter", 1),
    "reduce_scatter_": ("reduce-scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce-scatter", 1),
}
# Share of those bytes that a process sends in a ring, times n / (n - 1).
_RING = {"all-reduce": 2.0, "all-gather": 1.0, "reduce-scatter": 1.0, "broadcast": 1.0}


class Traffic(TorchDispatchMode):
    """Counts the collective operations that are called inside a `with` block, by kind.

    The bytes of an operation are those of the whole tensor: the gathered one, or the one before it is reduced.
    In a ring of n processes each then sends (n - 1) / n of them, of an all-reduce twice that. On the CPU all
    are seen; on a GPU those of a backward pass run in a thread of their own and are not.

    Attributes:
        calls: number of operations of each kind: all-reduce, all-gather, reduce-scatter, broadcast.
        bytes: their bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = defaultdict(int)
        self.bytes: dict[str, int] = defaultdict(int)

    def sent(self, num_processes: int) -> float:
        """Bytes that each process sends, if operations run in a ring.

        Args:
            num_processes: n.
        """
        whole = sum(_RING[kind] * size for kind, size in self.bytes.items())
        return whole * (num_processes - 1) / num_processes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "c10d" and name in _WHOLE:
            kind, place = _WHOLE[name]
            self.calls[kind] += 1
            self.bytes[kind] += sum(each.numel() * each.element_size() for each in _tensors(args[place]))
        return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))

"""Books what a piece of torch code allocates and multiplies, operation by operation.

On fake tensors (`torch._subclasses.fake_tensor`), which have shapes and no values, nothing is computed and no memory
is taken, so that a network of any size can be followed on any machine.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_ATEN = torch.ops.aten
OTHER = "activations"
BACKWARD = "backward"


def _flash_cpu(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _flash_cpu_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


# torch's own registry leaves out the CPU's fused attention.
_MORE_FORMULAS: dict[Any, Callable[..., int]] = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _flash_cpu,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _flash_cpu_backward,
}


class Ledger(TorchDispatchMode):
    """Live bytes by kind at every moment of a `with` block, the moment with the most, and the FLOPs.

    A block of memory counts once however many tensors share it, from the operation that made it to the end of its
    last tensor. What an operation takes and gives back inside (a kernel's scratch space) is not seen.

    Where a value of a fake tensor is asked for (a check for NaN), it is 0.

    Args:
        learner: the operations of each of its children's forward passes are booked under the child's name.

    Attributes:
        live: bytes by kind now; what nobody has assigned is "activations".
        peak: bytes by kind at the moment when they were most.
        flops: floating-point operations by child; "loss" for what is outside of them, "backward" for the backward
            passes, recomputed activations included.
    """

    def __init__(self, learner: nn.Module) -> None:
        super().__init__()
        self._learner = learner
        self._place = "loss"
        self._kinds: dict[int, str] = {}
        self._watched: dict[int, weakref.ref[Any]] = {}
        self.live: dict[str, int] = defaultdict(int)
        self.peak: dict[str, int] = {}
        self.flops: dict[str, int] = defaultdict(int)

    def start(self) -> None:
        """Forget the peak and the operations so far; what is live stays."""
        self.peak = dict(self.live)
        self.flops = defaultdict(int)

    def assign(self, kind: str, tensors: Iterable[Tensor]) -> None:
        """Book the memory of some tensors under a kind.

        Args:
            kind: its name.
            tensors: already booked or not.
        """
        for tensor in tensors:
            self._book(tensor)
            key, size = tensor.untyped_storage()._cdata, tensor.untyped_storage().nbytes()
            self.live[self._kinds[key]] -= size
            self.live[kind] += size
            self._kinds[key] = kind

    @contextmanager
    def watching(self) -> Iterator[Ledger]:
        """Book what is done inside, with gradients and the learner's children told apart."""
        handles = []
        for name, child in self._learner.named_children():
            handles.append(child.register_forward_pre_hook(lambda *_, name=name: self._go(name)))
            handles.append(child.register_forward_hook(lambda *_: self._go("loss"), always_call=True))
        for parameter in self._learner.parameters():
            if parameter.requires_grad:
                handles.append(parameter.register_post_accumulate_grad_hook(self._gradient))
        try:
            # A GPU's backward pass would run in a thread of its own, without this mode.
            with torch.autograd.set_multithreading_enabled(False), self:
                yield self
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, packet = kwargs or {}, func.overloadpacket
        if packet is _ATEN._local_scalar_dense and _is_fake(args[0]):
            return 0
        out = func(*args, **kwargs)
        formula = _MORE_FORMULAS.get(packet) or flop_registry.get(_out_of_place(packet))
        if formula is not None:
            in_backward = torch._C._current_graph_task_id() != -1
            self.flops[BACKWARD if in_backward else self._place] += formula(*args, **kwargs, out_val=out)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._book(leaf)
        if sum(self.live.values()) > sum(self.peak.values()):
            self.peak = dict(self.live)
        return out

    def _go(self, place: str) -> None:
        self._place = place

    def _gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.assign("gradients", [parameter.grad])

    def _book(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._kinds:
            return
        self._kinds[key] = OTHER
        self.live[OTHER] += size
        self._watched[key] = weakref.ref(storage, lambda _: self._drop(key, size))

    def _drop(self, key: int, size: int) -> None:
        self.live[self._kinds.pop(key)] -= size
        del self._watched[key]


def _is_fake(tensor: Tensor) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)


def _out_of_place(packet: Any) -> Any:
    """The operator of which this one is the in-place form, else itself."""
    name = packet.__name__
    return getattr(_ATEN, name[:-1], packet) if name.endswith("_") and not name.endswith("__") else packet

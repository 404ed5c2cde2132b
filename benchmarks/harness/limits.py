"""The machine's limit, measured: the same matrix products alone, a copy of the same bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Product(NamedTuple):
    """`batch` products of `[rows, inner]` with `[inner, columns]`."""

    batch: int
    rows: int
    inner: int
    columns: int
    dtype: torch.dtype

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.batch * self.rows * self.inner * self.columns


def count_products(call: Callable[[], object]) -> list[Product]:
    """Every matrix product that a call makes, forward and backward, attention's included.

    Args:
        call: what is watched; it runs once.
    """
    with _Watch() as watch:
        call()
    return watch.products


def products(
    shapes: Iterable[Product | Sequence[int]], dtype: torch.dtype = torch.float32
) -> Callable[[], None]:
    """A call that makes these products and nothing else, into memory that is there already.

    Args:
        shapes: `Product`s, or `(rows, inner, columns)` in `dtype`.
        dtype: of the plain triples.
    """
    listed = [each if isinstance(each, Product) else Product(1, *each, dtype) for each in shapes]
    ready: dict[Product, tuple[Tensor, Tensor, Tensor]] = {each: _operands(each) for each in set(listed)}
    todo = [(ready[each], count) for each, count in Counter(listed).items()]

    @torch.inference_mode()
    def run() -> None:
        for (left, right, out), count in todo:
            multiply = torch.mm if left.dim() == 2 else torch.bmm
            for _ in range(count):
                multiply(left, right, out=out)

    return run


def copy_limit(num_bytes: int) -> Callable[[], None]:
    """A call that reads and writes so many bytes each, as one large copy.

    Args:
        num_bytes: size of the buffer that is copied.
    """
    source = torch.ones(num_bytes // 4)
    target = torch.empty_like(source)

    def run() -> None:
        target.copy_(source)

    return run


def _operands(product: Product) -> tuple[Tensor, Tensor, Tensor]:
    batch, rows, inner, columns, dtype = product
    shapes = ((batch, rows, inner), (batch, inner, columns), (batch, rows, columns))
    left, right, out = (torch.ones(shape, dtype=dtype) for shape in shapes)
    return (left, right, out) if batch > 1 else (left[0], right[0], out[0])


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = _FORMS.get(func.overloadpacket)
        if found is not None:
            self.products += found(*args)
        return func(*args, **(kwargs or {}))


def _mm(left: Tensor, right: Tensor) -> list[Product]:
    return [Product(1, left.shape[0], left.shape[1], right.shape[1], left.dtype)]


def _bmm(left: Tensor, right: Tensor) -> list[Product]:
    return [Product(*left.shape, right.shape[2], left.dtype)]


def _linear(x: Tensor, weight: Tensor, *_: Any) -> list[Product]:
    return [Product(1, x.numel() // x.shape[-1], x.shape[-1], weight.shape[0], x.dtype)]


def _convolution(x: Tensor, weight: Tensor, *_: Any) -> list[Product]:
    # Only patch embeddings occur here: kernel and stride agree, so a convolution is one product.
    inner = weight[0].numel()
    return [Product(1, x.numel() // inner, inner, weight.shape[0], x.dtype)]


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *_: Any) -> list[Product]:
    inner = weight[0].numel()
    return [Product(1, weight.shape[0], x.numel() // inner, inner, x.dtype)]


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> list[Product]:
    batch, n, e, j = q.shape[0] * q.shape[1], q.shape[2], q.shape[3], k.shape[2]
    return [Product(batch, n, e, j, q.dtype), Product(batch, n, j, v.shape[3], q.dtype)]


def _attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> list[Product]:
    # Of the weights, the values, the queries and the keys; what a kernel computes anew is its own affair.
    batch, n, e, j = q.shape[0] * q.shape[1], q.shape[2], q.shape[3], k.shape[2]
    dtype = q.dtype
    return [
        Product(batch, n, e, j, dtype),
        Product(batch, j, n, e, dtype),
        Product(batch, n, j, e, dtype),
        Product(batch, j, n, e, dtype),
    ]


_aten = torch.ops.aten
_FORMS: dict[Any, Callable[..., list[Product]]] = {
    _aten.mm: _mm,
    _aten.addmm: lambda bias, left, right: _mm(left, right),
    _aten.bmm: _bmm,
    _aten.baddbmm: lambda bias, left, right: _bmm(left, right),
    _aten.linear: _linear,
    _aten.convolution: _convolution,
    _aten.convolution_backward: _convolution_backward,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}

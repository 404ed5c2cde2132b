"""What bounds a training step: the time of each of its operations alone, added up, beside the step itself.

    python -m benchmarks.kernels                 # I-JEPA's step, ViT-Ti/16 at 224, batch 16, float32
    python -m benchmarks.kernels bf16-mixed      # the same under bfloat16 autocast

One step is watched; then each operation that it made (forward, backward, AdamW, EMA) is run again, alone, as many
times as the step made it and on the same shapes, strides and values. Views cost nothing and are left out. *warm* is
on the same tensors again and again, which the caches hold; *cold* goes round copies of them and keeps what comes out,
256 MiB in all, so that every operand is fetched from where a step finds it: from memory. *products* are matrix
products and attention. It is torch's operations that are watched and added up; on a CPU the step itself runs on
`torchjepa.nn.native`, which joins them, unless TORCHJEPA_NATIVE=0. What a step without takes beyond its cold sum is
dispatch, what the sum takes beyond its products torch's operations for GELU, layer norms, sums, copies and casts, each
a pass over memory.
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Any

import pyperf
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.harness import count_products, products
from benchmarks.topics.step import TINY_224, OurStep, warm_up

_ROUNDS, _SHOWN = 7, 16
_COLD_BYTES, _MOST_COPIES = 256 << 20, 64
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "scaled_dot_product")


class Operations(TorchDispatchMode):
    """Keeps one example of every operation, and how often each was made."""

    def __init__(self) -> None:
        super().__init__()
        self.examples: dict[Any, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}
        self.counts: Counter[Any] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not func.is_view:
            key = (func, str(tree_map(_signature, (args, sorted(kwargs.items())))))
            self.counts[key] += 1
            if key not in self.examples:
                self.examples[key] = (func, *tree_map(_copy, (args, kwargs)))
        return func(*args, **kwargs)


def _signature(value: Any) -> Any:
    return (tuple(value.shape), value.stride(), value.dtype) if isinstance(value, Tensor) else value


def _copy(value: Any) -> Any:
    # With its memory and strides: a product of a transposed matrix is another kernel.
    if not isinstance(value, Tensor):
        return value
    memory = value.untyped_storage().clone()
    return torch.empty(0, dtype=value.dtype).set_(memory, value.storage_offset(), value.shape, value.stride())


@torch.no_grad()
def seconds_alone(operations: Operations, cold: bool = False) -> dict[str, float]:
    """Seconds of all calls of each kind of operation in one step, each operation run alone.

    Args:
        operations: what a step made.
        cold: on memory that no cache holds.
    """
    spent: dict[str, float] = defaultdict(float)
    for key, (func, args, kwargs) in operations.examples.items():
        calls = _Calls(func, args, kwargs, cold)
        rounds = []
        for _ in range(_ROUNDS):
            start = pyperf.perf_counter()
            for _ in range(operations.counts[key]):
                calls()
            rounds.append(pyperf.perf_counter() - start)
        spent[func.overloadpacket.__name__] += statistics.median(rounds)
    return dict(spent)


class _Calls:
    """One operation, again and again: on one set of operands, or going round several."""

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], cold: bool) -> None:
        self.func, self.operands = func, [(args, kwargs)]
        self.kept: deque[Any] = deque([func(*args, **kwargs)], maxlen=1)
        if cold:
            touched = [each for each in tree_leaves((args, kwargs, self.kept[0])) if isinstance(each, Tensor)]
            num_bytes = sum(each.untyped_storage().nbytes() for each in touched)
            copies = min(_MOST_COPIES, 1 + _COLD_BYTES // max(num_bytes, 1))
            self.operands = [tree_map(_copy, (args, kwargs)) for _ in range(copies)]
            self.kept = deque(maxlen=copies)  # a result freed at once would leave its warm memory to the next
            for _ in range(copies):
                self()

    def __call__(self) -> None:
        args, kwargs = self.operands[0]
        self.operands.append(self.operands.pop(0))
        self.kept.append(self.func(*args, **kwargs))


def seconds(call: Callable[[], object]) -> float:
    """The median of a few calls, after one."""
    call()
    rounds = []
    for _ in range(_ROUNDS):
        start = pyperf.perf_counter()
        call()
        rounds.append(pyperf.perf_counter() - start)
    return statistics.median(rounds)


def main(precision: str = "32") -> None:
    torch.set_num_threads(2)
    warm_up(lambda setting: OurStep(setting, precision))
    step = OurStep(TINY_224, precision)
    step()
    with Operations() as operations:
        step()
    limit = products(count_products(step))
    # First and last: a machine that changes its pace meanwhile shows it.
    before, bare = seconds(step), seconds(limit)
    warm, cold = seconds_alone(operations), seconds_alone(operations, cold=True)
    whole = (before + seconds(step)) / 2
    calls: Counter[str] = Counter()
    for (func, _), count in operations.counts.items():
        calls[func.overloadpacket.__name__] += count
    Console().print(table(f"{TINY_224.name}, {precision}", warm, cold, calls, whole, bare))
    for name, spent in (("warm", warm), ("cold", cold)):
        total = sum(spent.values())
        print(f"{name}: step over sum {whole / total:.2f}, sum over bare products {total / bare:.2f}")


def table(
    title: str,
    warm: dict[str, float],
    cold: dict[str, float],
    calls: Counter[str],
    whole: float,
    bare: float,
) -> Table:
    """The longest operations, what they add up to, and the step."""
    shown = Table(title=f"{title}: ms of one step, each operation alone")
    shown.add_column("operation")
    for name in ("calls", "warm", "cold"):
        shown.add_column(name, justify="right")
    for name, spent in sorted(cold.items(), key=lambda item: -item[1])[:_SHOWN]:
        shown.add_row(name, str(calls[name]), f"{1e3 * warm[name]:.1f}", f"{1e3 * spent:.1f}")
    shown.add_section()
    of_products = [
        sum(spent for name, spent in alone.items() if any(part in name for part in _PRODUCTS))
        for alone in (warm, cold)
    ]
    totals = [sum(alone.values()) for alone in (warm, cold)]
    for name, values in (
        ("products and attention", of_products),
        ("everything else", [total - part for total, part in zip(totals, of_products)]),
        ("sum", totals),
        ("the step", ["", whole]),
        ("bare products, the limit of the topic step", [bare, ""]),
    ):
        shown.add_row(name, "", *(value if value == "" else f"{1e3 * value:.1f}" for value in values))
    return shown


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What bounds a training step: the time of each of its operations alone, added up, beside the step itself.

    python -m benchmarks.kernels                 # I-JEPA's step, ViT-Ti/16 at 224, batch 16, float32
    python -m benchmarks.kernels bf16-mixed      # the same under bfloat16 autocast

One step is watched; then each operation that it made (forward, backward, AdamW, EMA) is run again, alone, as many
times as the step made it and on the same shapes, strides and values. Views cost nothing and are left out. *products*
are matrix products and attention. What the step takes beyond the sum is memory that is cold by then, and dispatch;
what the sum takes beyond its products is torch's operations for GELU, layer norms, sums, copies and casts, each a
pass over memory.
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pyperf
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from benchmarks.harness import count_products, products
from benchmarks.topics.step import TINY_224, OurStep, warm_up

_ROUNDS, _SHOWN = 7, 16
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
def seconds_alone(operations: Operations) -> dict[str, float]:
    """Seconds of all calls of each kind of operation in one step, each operation run alone."""
    spent: dict[str, float] = defaultdict(float)
    for key, (func, args, kwargs) in operations.examples.items():
        rounds = []
        for _ in range(_ROUNDS):
            start = pyperf.perf_counter()
            for _ in range(operations.counts[key]):
                func(*args, **kwargs)
            rounds.append(pyperf.perf_counter() - start)
        spent[func.overloadpacket.__name__] += statistics.median(rounds)
    return dict(spent)


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
    before, alone, bare = seconds(step), seconds_alone(operations), seconds(limit)
    whole = (before + seconds(step)) / 2
    calls: Counter[str] = Counter()
    for (func, _), count in operations.counts.items():
        calls[func.overloadpacket.__name__] += count
    Console().print(table(f"{TINY_224.name}, {precision}", alone, calls, whole, bare))
    total = sum(alone.values())
    print(f"step over sum {whole / total:.2f}, sum over bare products {total / bare:.2f}")


def table(title: str, alone: dict[str, float], calls: Counter[str], whole: float, bare: float) -> Table:
    """The longest operations, what they add up to, and the step."""
    shown = Table(title=f"{title}: ms of one step, each operation alone")
    shown.add_column("operation")
    shown.add_column("calls", justify="right")
    shown.add_column("ms", justify="right")
    for name, spent in sorted(alone.items(), key=lambda item: -item[1])[:_SHOWN]:
        shown.add_row(name, str(calls[name]), f"{1e3 * spent:.1f}")
    shown.add_section()
    of_products = sum(spent for name, spent in alone.items() if any(part in name for part in _PRODUCTS))
    total = sum(alone.values())
    for name, value in (
        ("products and attention", of_products),
        ("everything else", total - of_products),
        ("sum", total),
        ("the step", whole),
        ("bare products, the limit of the topic step", bare),
    ):
        shown.add_row(name, "", f"{1e3 * value:.1f}")
    return shown


if __name__ == "__main__":
    main(*sys.argv[1:])

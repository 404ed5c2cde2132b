"""Collapse regularizers: forward and backward of one loss, float32, beside the published formulas

Two views (SIGReg: one). The limit is the fewest matrix products that the loss and its gradient need; *apart* is the
distance of the two gradients. `collapse_sweep` asks over many sizes whether ours is ever slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness import Comparison, Contenders, Peak, products, relative_distance
from benchmarks.peers.collapse import published_barlow_twins, published_sigreg, published_vicreg
from torchjepa.collapse import BarlowTwins, SIGReg, VICReg

SIZES = ((256, 2048), (256, 8192), (1024, 8192), (2048, 512))
GOALS = {"VICReg": (9, 70, 12, 1.6), "Barlow Twins": (7, 35, 7, 1.6), "SIGReg": (3, 3, 3, 3)}
MEMORY_GOALS = {"VICReg": 1 / 8, "Barlow Twins": 1 / 8, "SIGReg": 1 / 4}
# Well under what is measured, at a size that takes milliseconds.
BARS = {"VICReg": 6.0, "Barlow Twins": 3.0, "SIGReg": 1.0}
Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        published: the restated formula.
        ours: the same numbers from torchjepa.
        same: the published formula with what ours drew, for the comparison of gradients.
        products: from n and d to the shapes (rows, inner, columns) of the products that are needed at least.
        views: number of views.
    """

    published: Loss
    ours: Loss
    same: Loss
    products: Callable[[int, int], list[tuple[int, int, int]]]
    views: int = 2


def vicreg_products(n: int, d: int) -> list[tuple[int, int, int]]:
    return 2 * [(n, d, n), (n, n, d)] if n < d else 2 * [(d, n, d), (n, d, d)]


def barlow_products(n: int, d: int) -> list[tuple[int, int, int]]:
    return 2 * [(n, d, n), (n, n, d)] if 4 * n < 3 * d else [(d, n, d), (n, d, d), (n, d, d)]


def cases() -> dict[str, Case]:
    sigreg, fixed = SIGReg(), SIGReg().eval()

    def same_sigreg(z: Tensor) -> Tensor:
        return published_sigreg(z, fixed.slices(z.shape[1]))

    barlow, vicreg = BarlowTwins.official().loss, VICReg.official().loss
    return {
        "VICReg": Case(published_vicreg, vicreg, published_vicreg, vicreg_products),
        "Barlow Twins": Case(published_barlow_twins, barlow, published_barlow_twins, barlow_products),
        "SIGReg": Case(
            published_sigreg, sigreg.loss, same_sigreg, lambda n, d: [(n, d, 256), (n, 256, d)], views=1
        ),
    }


def inputs(case: Case, n: int, d: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(n, d, generator=generator)
    return [(base + 0.3 * torch.randn(n, d, generator=generator)).requires_grad_() for _ in range(case.views)]


def gradients(loss: Loss, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(*views), views)


def forward_backward(loss: Loss, views: Sequence[Tensor]) -> None:
    """What a training loop does; gradients stay with their tensors until the next call."""
    for view in views:
        view.grad = None
    loss(*views).backward()


def build(name: str, n: int, d: int) -> Contenders:
    """Ours and the published formula on the same views.

    Args:
        name: of the loss.
        n: samples.
        d: dimensions.
    """
    case = cases()[name]
    views = inputs(case, n, d)
    # Ours draws new slices each time: for the comparison of numbers they stand still.
    fixed = SIGReg().eval().loss if case.views == 1 else case.ours
    deviation = relative_distance(gradients(fixed, views), gradients(case.same, views))
    return Contenders(
        lambda: forward_backward(case.ours, views),
        lambda: forward_backward(case.published, views),
        products(case.products(n, d)),
        deviation,
    )


def comparison(name: str, n: int, d: int, goal: float | None, **options: float) -> Comparison:
    return Comparison(
        f"{name}, {n} x {d}", "published", lambda: build(name, n, d), goal, tolerance=1e-4, **options
    )


def comparisons() -> Iterator[Comparison | Peak]:
    for name, goals in GOALS.items():
        for (n, d), goal in zip(SIZES, goals):
            short = {"bar": BARS[name]} if (n, d) == SIZES[0] else {}
            yield comparison(name, n, d, goal, **short)
    for name, goal in MEMORY_GOALS.items():
        of = name.lower().replace(" ", "_")
        functions = f"{__name__}:our_{of}", f"{__name__}:published_{of}_alone"
        yield Peak(f"{name}, 256 x 8192", "published", *functions, goal=goal)


def watch(name: str, which: str) -> Callable[[], object]:
    case = cases()[name]
    loss = case.ours if which == "ours" else case.published
    gradients(loss, inputs(case, 8, 16))
    views = inputs(case, 256, 8192)
    return lambda: gradients(loss, views)


def our_vicreg() -> Callable[[], object]:
    return watch("VICReg", "ours")


def published_vicreg_alone() -> Callable[[], object]:
    return watch("VICReg", "published")


def our_barlow_twins() -> Callable[[], object]:
    return watch("Barlow Twins", "ours")


def published_barlow_twins_alone() -> Callable[[], object]:
    return watch("Barlow Twins", "published")


def our_sigreg() -> Callable[[], object]:
    return watch("SIGReg", "ours")


def published_sigreg_alone() -> Callable[[], object]:
    return watch("SIGReg", "published")

"""Collapse regularizers beside plain restatements of the published formulas: time, memory, agreement.

    python benchmarks/collapse.py                 the table: ratios, distance to the machine's limit, memory
    python benchmarks/collapse.py --sweep         never slower? every n in 2..4096 and d in 2..8192, by powers
    python benchmarks/collapse.py --sizes 256x2048 --threads 1 --repeats 9

Forward and backward of one loss on two views (SIGReg: one), float32, published and ours in turn in one process. A
ratio is the median of the pairs' ratios, published over ours; the range is that of the middle half. *limit* is the time
of the fewest matrix products that the loss and its gradient need, measured in the same run; *x of limit* is ours
over it, *most* the ratio that products alone would have. *error* is the distance of the two gradients over the norm of
the published one. Memory is the growth of the peak resident set of a fresh process over inputs and a warm-up.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from torchjepa.collapse import BarlowTwins as OurBarlowTwins
from torchjepa.collapse import SIGReg, VICReg

SIZES = ((256, 2048), (256, 8192), (1024, 8192), (2048, 512))
SWEEP_N, SWEEP_D = (2, 8, 32, 128, 512, 4096), (2, 8, 32, 128, 512, 2048, 8192)
Loss = Callable[..., Tensor]


def off_diagonal(matrix: Tensor) -> Tensor:
    """The off-diagonal entries as the published codes pick them: flattened, the diagonal becomes a column."""
    d = matrix.shape[0]
    return matrix.flatten()[:-1].view(d - 1, d + 1)[:, 1:].flatten()


def published_vicreg(z_a: Tensor, z_b: Tensor) -> Tensor:
    n, d = z_a.shape
    total = 25.0 * F.mse_loss(z_a, z_b)
    for z in (z_a - z_a.mean(0), z_b - z_b.mean(0)):
        deviation = torch.sqrt(z.var(0) + 1e-4)
        total = total + 25.0 * torch.relu(1.0 - deviation).mean() / 2.0
        total = total + off_diagonal(z.T @ z / (n - 1)).pow(2).sum() / d
    return total


@lru_cache
def batch_norm(d: int, dtype: torch.dtype) -> torch.nn.BatchNorm1d:
    """A part of the published model, with running statistics that nothing reads."""
    return torch.nn.BatchNorm1d(d, affine=False, dtype=dtype)


def published_barlow_twins(z_a: Tensor, z_b: Tensor) -> Tensor:
    standard_a, standard_b = map(batch_norm(z_a.shape[1], z_a.dtype), (z_a, z_b))
    correlation = standard_a.T @ standard_b / len(z_a)
    on = (correlation.diagonal() - 1.0).pow(2).sum()
    return on + 0.0051 * off_diagonal(correlation).pow(2).sum()


def published_sigreg(z: Tensor, slices: Tensor | None = None, *, num_slices: int = 256) -> Tensor:
    """As LeJEPA's minimal code has it: every knot of every slice of every sample at once, by autograd."""
    if slices is None:
        slices = torch.randn(z.shape[1], num_slices, device=z.device)
        slices = slices / slices.norm(dim=0)
    t = torch.linspace(0, 3, 17, device=z.device, dtype=z.dtype)
    trapezoid = torch.full_like(t, 2 * 3 / 16)
    trapezoid[[0, -1]] = 3 / 16
    phi = (-t.square() / 2).exp()
    angles = (z @ slices).unsqueeze(-1) * t  # [n, s, 17]
    error = (angles.cos().mean(0) - phi).square() + angles.sin().mean(0).square()
    return (error @ (trapezoid * phi)).mean() * len(z)


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

    barlow, vicreg = OurBarlowTwins.official().loss, VICReg.official().loss
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


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Measured:
    published: float
    ours: float
    limit: float
    ratio: float
    low: float
    high: float
    error: float


def measure(case: Case, n: int, d: int, repeats: int, budget: float) -> Measured:
    """Interleaved timings, at least three pairs, and more as long as the budget (in seconds) lasts."""
    views = inputs(case, n, d)
    exact = gradients(case.same, views)
    fixed = SIGReg().eval().loss if case.views == 1 else case.ours
    error = sum((ours - theirs).norm() ** 2 for ours, theirs in zip(gradients(fixed, views), exact)) ** 0.5
    norm = sum(theirs.norm() ** 2 for theirs in exact) ** 0.5
    operands = [(torch.randn(rows, k), torch.randn(k, cols)) for rows, k, cols in case.products(n, d)]
    pairs: list[tuple[float, float, float]] = []
    begun = time.perf_counter()
    # Small sizes are timed in runs of several calls, or the clock would be what is measured.
    calls = max(1, min(20, int(2e-3 / max(seconds(lambda: forward_backward(case.ours, views)), 1e-6))))
    forward_backward(case.published, views)
    while len(pairs) < 3 or (len(pairs) < repeats and time.perf_counter() - begun < budget):
        published = seconds(lambda: [forward_backward(case.published, views) for _ in range(calls)]) / calls
        ours = seconds(lambda: [forward_backward(case.ours, views) for _ in range(calls)]) / calls
        limit = seconds(lambda: [[a @ b for a, b in operands] for _ in range(calls)]) / calls
        pairs.append((published, ours, limit))
    ratios = sorted(published / ours for published, ours, _ in pairs)
    medians = [statistics.median(column) for column in zip(*pairs)]
    quarter = len(ratios) // 4
    return Measured(
        *medians, statistics.median(ratios), ratios[quarter], ratios[-1 - quarter], float(error / norm)
    )


def peak_memory(name: str, which: str, n: int, d: int) -> int:
    """Bytes, in a process of its own."""
    command = [sys.executable, __file__, "--child", name, which, str(n), str(d)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ})
    return int(out.stdout)


def child(name: str, which: str, n: int, d: int) -> None:
    case = cases()[name]
    loss = case.ours if which == "ours" else case.published
    gradients(loss, inputs(case, 8, 16))
    views = inputs(case, n, d)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts at what is resident now
    before = resident("VmHWM")
    gradients(loss, views)
    print(resident("VmHWM") - before)


def resident(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(field))


def show_table(sizes: Sequence[tuple[int, int]], repeats: int, memory: bool) -> list[dict[str, object]]:
    table = Table(title="forward + backward, float32, published over ours")
    for column in (
        "loss",
        "n x d",
        "published ms",
        "ours ms",
        "ratio",
        "middle half",
        "x of limit",
        "most",
        "error",
    ):
        table.add_column(column, justify="left" if column == "loss" else "right")
    rows: list[dict[str, object]] = []
    for name, case in cases().items():
        for n, d in sizes:
            got = measure(case, n, d, repeats, budget=60.0)
            rows.append({"loss": name, "n": n, "d": d, **got.__dict__})
            table.add_row(
                name,
                f"{n} x {d}",
                f"{1e3 * got.published:.1f}",
                f"{1e3 * got.ours:.1f}",
                f"{got.ratio:.1f}" if got.ratio >= 3 else f"{got.ratio:.2f}",
                f"{got.low:.2f} to {got.high:.2f}",
                f"{got.ours / got.limit:.2f}",
                f"{got.published / got.limit:.1f}",
                f"{got.error:.0e}",
            )
    console = Console(width=120)
    console.print(table)
    if memory:
        for name in cases():
            ours, published = (peak_memory(name, which, 256, 8192) for which in ("ours", "published"))
            rows.append({"loss": name, "n": 256, "d": 8192, "ours_bytes": ours, "published_bytes": published})
            console.print(
                f"{name}: peak extra memory at 256 x 8192: ours {ours / 2**20:.0f} MiB, published "
                f"{published / 2**20:.0f} MiB, 1/{published / max(ours, 1):.1f}"
            )
    return rows


def show_sweep(repeats: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name, case in cases().items():
        table = Table(title=f"{name}: published over ours")
        for column in ("n", *(f"d={d}" for d in SWEEP_D)):
            table.add_column(column, justify="right")
        for n in SWEEP_N:
            ratios = []
            for d in SWEEP_D:
                got = measure(case, n, d, repeats, budget=3.0)
                rows.append({"loss": name, "n": n, "d": d, **got.__dict__})
                ratios.append(got.ratio)
            table.add_row(str(n), *(f"{ratio:.2f}" for ratio in ratios))
        Console(width=110).print(table)
    worst = min(rows, key=lambda row: float(row["ratio"]))  # type: ignore[arg-type]
    print(f"slowest: {worst['loss']} at n={worst['n']}, d={worst['d']}: {worst['ratio']:.2f}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=["x".join(map(str, size)) for size in SIZES])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--sweep", action="store_true", help="many sizes, a few pairs each")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", help="also write the numbers to this file")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        name, which, n, d = arguments.child
        child(name, which, int(n), int(d))
        return
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"The machine is busy (load {load:.1f}): quote ratios, not milliseconds, and measure again.")
    sizes = [tuple(map(int, size.split("x"))) for size in arguments.sizes]
    if arguments.sweep:
        rows = show_sweep(arguments.repeats)
    else:
        rows = show_table(sizes, arguments.repeats, not arguments.no_memory)  # type: ignore[arg-type]
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()

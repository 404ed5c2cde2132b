"""Time to draw multi-block masks: the vectorised sampler beside a plain loop over samples and blocks.

    python benchmarks/masking.py [--batch-size 256] [--side 14] [--repeats 200]

One thread. The loop restates the published description: a block at a time, its ids found in a zero map, the
context multiplied by every complement, contexts cut to the shortest of the batch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from torchjepa.masking import Grid, Masks, MultiBlockMasking, RandomMasking


def plain_loop(grid: Grid, batch_size: int, generator: torch.Generator) -> Masks:
    rows, columns = round((0.175 * grid.num_tokens) ** 0.5), round((0.175 * grid.num_tokens) ** 0.5)
    contexts, targets = [], []
    for _ in range(batch_size):
        hidden = torch.zeros(grid.h, grid.w, dtype=torch.int32)
        blocks = []
        for _ in range(4):
            block = place(grid, rows, columns, generator)
            blocks.append(block.flatten().nonzero().squeeze(1))
            hidden += block
        seen = place(grid, grid.h - 1, grid.w - 1, generator) * (hidden == 0)
        contexts.append(seen.flatten().nonzero().squeeze(1))
        targets.append(torch.stack(blocks))
    shortest = min(map(len, contexts))
    return Masks(torch.stack([context[:shortest] for context in contexts]), torch.stack(targets))


def place(grid: Grid, rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    top = int(torch.randint(grid.h - rows, (1,), generator=generator))
    left = int(torch.randint(grid.w - columns, (1,), generator=generator))
    block = torch.zeros(grid.h, grid.w, dtype=torch.int32)
    block[top : top + rows, left : left + columns] = 1
    return block


def milliseconds(draw: Callable[[], object], repeats: int) -> tuple[float, float]:
    draw()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        draw()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times), min(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--side", type=int, default=14, help="rows and columns of the token grid")
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    grid = Grid(h=options.side, w=options.side)
    generator = torch.Generator().manual_seed(0)
    samplers = {
        "MultiBlockMasking()": (MultiBlockMasking(), options.repeats),
        "MultiBlockMasking(legacy=True)": (MultiBlockMasking(legacy=True), options.repeats),
        "RandomMasking(0.6)": (RandomMasking(0.6), options.repeats),
        "plain loop": (plain_loop, max(options.repeats // 20, 3)),
    }
    print(f"{options.batch_size} samples on {options.side} x {options.side} tokens, one thread, ms per batch")
    print(f"{'':32s}{'median':>10s}{'best':>10s}")
    for name, (sampler, repeats) in samplers.items():
        median, best = milliseconds(lambda draw=sampler: draw(grid, options.batch_size, generator), repeats)
        print(f"{name:32s}{median:10.3f}{best:10.3f}")


if __name__ == "__main__":
    main()

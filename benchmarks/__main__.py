"""Measure torchjepa beside the code that people use today.

    python -m benchmarks                      everything
    python -m benchmarks step --vs official   one topic, one peer
    python -m benchmarks --short              what CI runs: the rows that have a bar; exit code 1 where one has fallen

*ratio* is the peer's time over ours (of memory: ours over the peer's), the median of interleaved pairs, beside it the
interval that holds this median with 95 %. *x of limit* is our time over that of the same matrix products alone, or of a
copy of the same bytes, measured in the same turns. *apart* is the distance between the two results.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import pkgutil
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyperf
import torch
from rich.console import Console

from benchmarks import topics
from benchmarks.harness.comparison import Comparison, Peak
from benchmarks.harness.memory import peak_growth
from benchmarks.harness.pairs import as_pyperf, time_comparison
from benchmarks.harness.table import Row, new_table

_DISTURBED = 0.1  # share of the machine in others' hands from which we warn


def main() -> int:
    options = _options()
    chosen = list(_chosen(options))
    if not chosen:
        sys.exit(f"Nothing to measure: no row of {options.topics or 'any topic'} has --vs {options.vs!r}.")
    if options.list:
        for topic, spec in chosen:
            print(f"{topic:10s} {spec.peer:14s} {spec.name}")
        return 0
    console = Console(width=None if sys.stdout.isatty() else 160)
    rows = []
    for topic in dict.fromkeys(topic for topic, _ in chosen):
        specs = [spec for name, spec in chosen if name == topic]
        rows += _measure(topic, specs, options.pairs, console)
    _write(rows, options)
    for row in rows:
        if row.fallen:
            assert row.timing is not None
            low, high = row.timing.interval
            print(
                f"FALLEN: {row.topic}, {row.spec.name}: {low:.2f} to {high:.2f}, the bar is {row.spec.bar:g}"
            )
    return int(any(row.fallen for row in rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [module.name for module in pkgutil.iter_modules(topics.__path__)]
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=f"among {', '.join(known)}; default all")
    parser.add_argument("--vs", metavar="PEER", help="only rows against this peer")
    parser.add_argument("--only", metavar="TEXT", help="only rows whose name contains this text")
    parser.add_argument(
        "--short", action="store_true", help="only rows with a bar; fail where one has fallen"
    )
    parser.add_argument("--pairs", type=int, help="samples of each, in place of each row's own number")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file")
    parser.add_argument("--pyperf", metavar="FILE", help="write the times for `python -m pyperf show FILE`")
    options = parser.parse_args()
    for topic in options.topics:
        if topic not in known:
            parser.error(f"no topic {topic!r}; there are {', '.join(known)}.")
    if options.pairs is not None and options.pairs < 1:
        parser.error(f"--pairs must be at least 1, got {options.pairs}.")
    options.topics = options.topics or [
        name for name in known if not getattr(_topic(name), "ON_REQUEST", False)
    ]
    return options


def _topic(name: str) -> Any:
    return importlib.import_module(f"benchmarks.topics.{name}")


def _chosen(options: argparse.Namespace) -> Iterator[tuple[str, Comparison | Peak]]:
    for topic in options.topics:
        for spec in _topic(topic).comparisons():
            wanted = options.vs in (None, spec.peer) and (options.only or "") in spec.name
            if wanted and not (options.short and getattr(spec, "bar", None) is None):
                yield topic, spec


def _measure(topic: str, specs: list[Comparison | Peak], pairs: int | None, console: Console) -> list[Row]:
    doc = _topic(topic).__doc__ or topic
    table, rows = new_table(doc.strip().splitlines()[0]), []
    with console.status("") as status:
        for spec in specs:
            status.update(f"{topic}: {spec.name}")
            row = _row(topic, spec, pairs)
            gc.collect()
            rows.append(row)
            table.add_row(*row.cells())
    console.print(table)
    shares = [row.timing.disturbed for row in rows if row.timing is not None]
    if shares and max(shares) > _DISTURBED:
        console.print(
            f"Warning: other programs used up to {max(shares):.0%} of this machine meanwhile; measure again alone.",
            style="bold red",
        )
    return rows


def _row(topic: str, spec: Comparison | Peak, pairs: int | None) -> Row:
    if isinstance(spec, Peak):
        ours, theirs = (peak_growth(function, spec.threads) for function in (spec.ours, spec.theirs))
        return Row(topic, spec, ours, theirs)
    timing = time_comparison(spec, pairs)
    return Row(topic, spec, timing.median("ours"), timing.median("peer"), timing)


def _write(rows: list[Row], options: argparse.Namespace) -> None:
    if options.json:
        machine = {"processor": _processor(), "torch": torch.__version__, "python": platform.python_version()}
        content = {"machine": machine, "rows": [row.as_json() for row in rows]}
        Path(options.json).write_text(json.dumps(content, indent=1))
    if options.pyperf:
        timed = [(f"{row.topic}, {row.spec.name}", row.timing) for row in rows if row.timing is not None]
        suite = [benchmark for name, timing in timed for benchmark in as_pyperf(name, timing)]
        pyperf.BenchmarkSuite(suite).dump(options.pyperf, replace=True)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())

"""Make the zoo, show it to the doctor, print what came out.

    python -m benchmarks.doctor_zoo [--only NAME ...] [--part dev|heldout|all] [--out DIR] [--write docs/doctor.md]

One core, about 15 minutes for everything; what has been made is kept in DIR and taken again until the code
that made it changes.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from benchmarks.doctor_zoo.case import Case
from benchmarks.doctor_zoo.cases import CASES
from benchmarks.doctor_zoo.control import control_table
from benchmarks.doctor_zoo.store import Store
from benchmarks.doctor_zoo.table import Outcome, page, write
from torchjepa.evaluation.doctor import diagnose


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these cases")
    parser.add_argument("--part", choices=["dev", "heldout", "all"], default="all")
    parser.add_argument("--out", default="runs/doctor_zoo", help="where cases are kept")
    parser.add_argument(
        "--reuse", action="store_true", help="take kept cases even where the code has changed"
    )
    parser.add_argument("--again", action="store_true", help="make the cases anew")
    parser.add_argument(
        "--make-only", action="store_true", help="make the cases and do not show them to the doctor"
    )
    parser.add_argument(
        "--write", metavar="FILE", help="put the result between the markers of this Markdown file"
    )
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    return parser.parse_args()


def main() -> int:
    """Make what is missing, ask the doctor, print and perhaps write."""
    options = _options()
    torch.set_num_threads(1)
    names = {case.name for case in CASES}
    unknown = set(options.only) - names
    if unknown:
        sys.exit(f"no such case: {', '.join(sorted(unknown))}; --list names them")
    chosen = options.only or names
    cases = [case for case in CASES if options.part in (case.part, "all") and case.name in chosen]
    if options.list:
        for case in cases:
            print(f"{case.part:8s} {case.name:27s} {case.expected:21s} {case.how}")
        return 0
    store = Store(options.out, reuse=options.reuse)
    labels = {case.name: _make(store, case, options.again) for case in cases}
    if options.make_only:
        return 0
    outcomes = [Outcome(case, labels[case.name], _ask(store, case)) for case in cases]
    text = page(outcomes)
    print(text)
    if options.write:
        write(options.write, "zoo", text)
        write(options.write, "control", control_table(store, outcomes))
    return int(not all(outcome.right for outcome in outcomes))


def _make(store: Store, case: Case, again: bool) -> dict[str, Any]:
    label = store.make(case) if again else store.label(case)
    earned = "" if label["holds"] else "LABEL NOT EARNED: "
    print(
        f"{case.name}: {case.expected}; {earned}{label['proof']}; {label['seconds']} s",
        file=sys.stderr,
        flush=True,
    )
    return label


def _ask(store: Store, case: Case) -> str:
    features, history = store.material(case)
    return str(diagnose(features, history=history).verdict.value)


if __name__ == "__main__":
    sys.exit(main())

"""jepa report: write a run's report.html again from what its folder holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True)
class ReportCommand:
    """Write a run's report.html again: also for a run that still trains or was stopped.

    Curves and scores are read afresh; the pictures are those kept when the training ended.
    """

    run: Annotated[str, tyro.conf.Positional]
    """Run folder, runs/digits say."""


def run(argv: Sequence[str]) -> int:
    """Run `jepa report` with these arguments."""
    command = tyro.cli(ReportCommand, args=list(argv), prog="jepa report")
    from torchjepa.report import write_report

    print(f"The report is in {write_report(command.run)}")
    return 0

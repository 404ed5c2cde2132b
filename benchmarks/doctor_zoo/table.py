"""Confusion matrices and the table of cases, as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.doctor_zoo.case import BROKEN, HEALTHY, UNCLEAR, Case

VERDICTS = (HEALTHY, *BROKEN, *UNCLEAR)
PARTS = {"dev": "development", "heldout": "held out"}


@dataclass(frozen=True)
class Outcome:
    """What the doctor said of a case.

    Args:
        case: the case.
        label: its entry in labels.json.
        got: the verdict.
    """

    case: Case
    label: dict[str, Any]
    got: str

    @property
    def right(self) -> bool:
        """Whether the verdict is the expected one."""
        return self.got == self.case.expected


def page(outcomes: Sequence[Outcome]) -> str:
    """All that the command has to say."""
    blocks = []
    for part, name in PARTS.items():
        few = [outcome for outcome in outcomes if outcome.case.part == part]
        if few:
            blocks += [f"### {name.capitalize()}: {len(few)} cases", summary(few), matrix(few)]
    return "\n\n".join([*blocks, "### The cases", case_table(outcomes)])


def summary(outcomes: Sequence[Outcome]) -> str:
    """The requirement in one line."""
    groups = {
        g: [each for each in outcomes if each.case.group == g] for g in ("healthy", "broken", "unclear")
    }
    alarms = sum(outcome.got in BROKEN for outcome in groups["healthy"])
    right = {group: sum(outcome.right for outcome in few) for group, few in groups.items()}
    total = {group: len(few) for group, few in groups.items()}
    share = f" ({100 * right['broken'] / total['broken']:.0f} %)" if total["broken"] else ""
    return (
        f"Healthy called unhealthy: {alarms} of {total['healthy']}. "
        f"Broken named rightly: {right['broken']} of {total['broken']}{share}. "
        f"Too early or too few, and said so: {right['unclear']} of {total['unclear']}."
    )


def matrix(outcomes: Sequence[Outcome]) -> str:
    """Rows are what a case is, columns what the doctor said; zeros are left blank."""
    count = Counter((outcome.case.expected, outcome.got) for outcome in outcomes)
    used = [verdict for verdict in VERDICTS if any(verdict in pair for pair in count)]
    rows = [["is \\ said", *used]]
    for expected in used:
        cells = [count[expected, got] for got in used]
        if any(cells):
            rows.append([expected, *(_cell(n, expected == got) for n, got in zip(cells, used))])
    return markdown(rows, "l" + "r" * len(used))


def case_table(outcomes: Sequence[Outcome]) -> str:
    """Every case with what its label stands on."""
    head = [
        "case",
        "part",
        "what it is",
        "kNN / untrained",
        "linear / untrained",
        "measured",
        "expected",
        "said",
    ]
    rows = [head]
    for outcome in outcomes:
        label, said = outcome.label, outcome.got if outcome.right else f"**{outcome.got}**"
        scores = label["scores"] or {}
        rows.append(
            [
                f"`{outcome.case.name}`",
                outcome.case.part,
                outcome.case.how,
                _accuracy(scores, "knn"),
                _accuracy(scores, "linear"),
                label["proof"] if label["holds"] else f"{label['proof']} (NOT EARNED)",
                outcome.case.expected,
                said,
            ]
        )
    return markdown(rows, "lllrrlll")


def write(path: str | Path, name: str, text: str) -> None:
    """Put the text between the markers `<!-- name: begin -->` and `<!-- name: end -->` of a Markdown file.

    Raises:
        ValueError: the file lacks the markers.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    whole = Path(path).read_text()
    if begin not in whole or end not in whole:
        raise ValueError(f"{path} needs the lines {begin} and {end}; what lies between them is replaced.")
    before, after = whole.split(begin)[0], whole.split(end)[1]
    Path(path).write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def _cell(n: int, right: bool) -> str:
    if n == 0:
        return ""
    return str(n) if right else f"**{n}**"


def _accuracy(scores: dict[str, float | None], probe: str) -> str:
    if not scores:
        return ""
    values = scores[probe], scores[f"untrained_{probe}"]
    return " / ".join("-" if value is None else f"{100 * value:.0f}" for value in values)


def markdown(rows: Sequence[Sequence[str]], align: str) -> str:
    """A table whose first row is its head; `align` has l or r for each column."""
    rule = ["---:" if side == "r" else "---" for side in align]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [rows[0], rule, *rows[1:]])

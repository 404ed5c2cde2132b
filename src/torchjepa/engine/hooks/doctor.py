"""A doctor that looks at the representation while the run trains, and says when it collapses."""

from __future__ import annotations

import json
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from torchjepa.engine.hooks.metrics_file import drop_lines_from
from torchjepa.engine.run import Run
from torchjepa.types import Loss

OnCollapse = Literal["warn", "stop"]
_MAX_ROWS, _MAX_STEPS = 1024, 16  # samples joined from at most so many steps
_MAX_PAIRS = 2048  # rows of prediction and target
_MAX_TOKEN_SAMPLES = 64
_MAX_HISTORY = 4096
_JOINED = ("encoder", "projector")


class Diagnosis(Protocol):
    """What the engine knows of a verdict; `evaluation.doctor.Diagnosis` is one."""

    @property
    def verdict(self) -> Any:
        """An enumeration whose `value` is the verdict in words."""
        ...

    @property
    def exit_code(self) -> int:
        """0 healthy, 1 unhealthy, 2 cannot tell."""
        ...

    @property
    def figures(self) -> Mapping[str, float]:
        """Everything that was measured."""
        ...

    @property
    def findings(self) -> Sequence[Any]:
        """What is wrong, each with its `verdict`, `evidence` and `advice`."""
        ...

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        ...


class Doctor:
    """Gives a verdict on the run every so many steps: `doctor/<figure>` in the row, all of it in doctor.jsonl.

    `doctor/unhealthy` is 1, 0, or none where the doctor cannot tell yet. A warning is given when the verdict
    changes, not each time that it stands. Pooled features are joined over up to 16 steps until they are 1024
    rows, since a micro-batch may be too small to judge by; each step's rows are moved onto the common mean, so
    that a drift of the weights does not look like spread.

    Args:
        diagnose: from named features (those of `Loss.features`, on the CPU in float32) and, as `history`, the
            rows so far, to a verdict; `evaluation.diagnose` for instance.
        every: steps between two checks; the last step is always checked.
        on_collapse: `warn`, or `stop` to end the run after the first check with an unhealthy verdict, with a
            checkpoint.

    Raises:
        ValueError: `every` is below 1, or `on_collapse` is neither.
    """

    def __init__(
        self, diagnose: Callable[..., Diagnosis], every: int, on_collapse: OnCollapse = "warn"
    ) -> None:
        if every < 1:
            raise ValueError(f"Doctor: every must be at least 1, got {every}.")
        if on_collapse not in ("warn", "stop"):
            raise ValueError(f"Doctor: on_collapse must be 'warn' or 'stop', got {on_collapse!r}.")
        self.every = every
        self._diagnose = diagnose
        self._stops = on_collapse == "stop"
        self._recent: dict[str, deque[Tensor]] = {}
        self._history: list[Mapping[str, Any]] = []
        self._known: str | None = None  # the last verdict that was one

    def on_start(self, run: Run) -> None:
        """Take up what was known when the run was left."""
        drop_lines_from(run.folder.doctor, run.start_step)
        told = [check for check in _read_lines(run.folder.doctor) if check.get("exit_code") in (0, 1)]
        self._known = told[-1].get("verdict") if told else None
        self._history = [
            row for row in _read_lines(run.folder.metrics) if row.get("step", 0) < run.start_step
        ]
        self._recent = {}

    def on_step(self, run: Run, step: int, loss: Loss) -> Mapping[str, float | None]:
        """The figures of a check, where one is due."""
        last = run.settings.total_steps - 1
        left = min(last, (step // self.every + 1) * self.every - 1) - step
        if left < _MAX_STEPS:
            self._remember(loss.features)
        if left or not self._recent:  # a learner of one's own may give no features
            return {}
        now = {"step": step, "lr": run.learning_rate}
        diagnosis = self._diagnose(self._features(loss.features), history=[*self._history, now])
        self._recent = {}
        self._write(run.folder.doctor, step, diagnosis)
        self._tell(run, step, diagnosis)
        unhealthy = {0: 0.0, 1: 1.0}.get(diagnosis.exit_code)
        return {"doctor/unhealthy": unhealthy, **{f"doctor/{k}": v for k, v in diagnosis.figures.items()}}

    def on_log(self, step: int, row: Mapping[str, Any]) -> None:
        """Keep the row for the trend; of a long run every second one is kept, every fourth, and so on."""
        self._history.append(dict(row))
        if len(self._history) > _MAX_HISTORY:
            del self._history[1::2]

    def _remember(self, features: Mapping[str, Tensor]) -> None:
        for name in _JOINED:
            if name in features:
                # A copy: a view would keep the whole graph's activations alive.
                rows = features[name].detach()[:_MAX_ROWS].clone()
                kept = self._recent.setdefault(name, deque(maxlen=_MAX_STEPS))
                kept.append(rows)
                while sum(map(len, kept)) - len(kept[0]) >= _MAX_ROWS:
                    kept.popleft()

    def _features(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        joined = {name: join_steps(list(rows)) for name, rows in self._recent.items()}
        others = {name: _some(value.detach()) for name, value in features.items() if name not in joined}
        return {name: value.to("cpu", torch.float32) for name, value in (joined | others).items()}

    def _write(self, path: Path, step: int, diagnosis: Diagnosis) -> None:
        line = {"step": step, "exit_code": diagnosis.exit_code, **diagnosis.to_json()}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _tell(self, run: Run, step: int, diagnosis: Diagnosis) -> None:
        if diagnosis.exit_code not in (0, 1):
            return
        verdict, before = str(diagnosis.verdict.value), self._known
        self._known = verdict
        if diagnosis.exit_code == 1:
            if self._stops:
                run.stop(f"the doctor ({verdict})")
            if self._stops or verdict != before:
                warnings.warn(f"Step {step}: {_in_a_line(diagnosis)}", stacklevel=2)
        elif before not in (None, verdict):
            warnings.warn(f"Step {step}: {verdict} again, no more {before}.", stacklevel=2)


def join_steps(batches: Sequence[Tensor]) -> Tensor:
    """The rows of successive steps as if of one: x - mean_s, unbiased, plus the mean of all.

    Args:
        batches: `[b, d]` of each step s; those of a single row stay where they are.

    Returns:
        `[n, d]`.
    """
    if len(batches) == 1:
        return batches[0]
    rows = [each.float() for each in batches]
    middle = torch.cat(rows).mean(0)
    # b rows minus their own mean have lost (b - 1) / b of their variance.
    scales = [(len(each) / max(1, len(each) - 1)) ** 0.5 for each in rows]
    return torch.cat(
        [
            each if len(each) == 1 else (each - each.mean(0)) * scale + middle
            for each, scale in zip(rows, scales)
        ]
    )


def _some(features: Tensor) -> Tensor:
    if features.ndim == 3:
        return features[:_MAX_TOKEN_SAMPLES]
    n = features.shape[0]
    if n <= _MAX_PAIRS:
        return features
    return features[torch.arange(_MAX_PAIRS, device=features.device) * n // _MAX_PAIRS]


def _in_a_line(diagnosis: Diagnosis) -> str:
    """The verdict, the two figures that decided it and the first knob."""
    findings = [each for each in diagnosis.findings if each.verdict == diagnosis.verdict]
    text = f"{diagnosis.verdict.value}."
    for finding in findings[:1]:
        figures = [f"{each.figure} {each.value:.3g} ({each.expected})" for each in finding.evidence[:2]]
        text += f" {', '.join(figures)}. {' '.join(finding.advice[:1])}"
    return text.rstrip()


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the last line of a killed run may be torn
            continue
    return [row for row in rows if isinstance(row, dict)]

"""Diagnose a representation: figures in, a verdict with its grounds and remedies out."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from torchjepa.evaluation.doctor.case import Case
from torchjepa.evaluation.doctor.figures import measure
from torchjepa.evaluation.doctor.history import measure_history
from torchjepa.evaluation.doctor.rules import RULES
from torchjepa.evaluation.doctor.thresholds import Thresholds
from torchjepa.evaluation.doctor.verdict import Diagnosis, Verdict

Array = Tensor | np.ndarray

NUM_AXES = {
    "encoder": 2,
    "projector": 2,
    "prediction": 2,
    "target": 2,
    "context": 2,
    "tokens": 3,
    "target_tokens": 3,
    "time": 3,
    "views": 3,
}
_DEFAULT = Thresholds()


def diagnose(
    features: Mapping[str, Array] | Array,
    *,
    history: Sequence[Mapping[str, float | None]] = (),
    thresholds: Thresholds = _DEFAULT,
) -> Diagnosis:
    """Say whether a representation has collapsed, in which way, and which knob to turn in which direction.

    Every feature at hand is measured (spread, rank against the attainable one, shares of variance over samples,
    tokens and time, prediction against its baselines), then each rule looks at the figures. Features that are
    not finite are a finding, not an error. At most 2048 samples are measured, evenly spaced.

    Args:
        features: by name, each optional: `encoder` `[n, d]` (one vector a sample; where missing, the mean of
            `tokens`, `time` or `views`), `projector` `[n, e]`, `tokens` and `target_tokens` `[b, n, d]` (online and
            target network), `time` `[b, t, d]`, `prediction` and `target` `[n, d]`, `context` `[n, d]` (what a
            predictor that copies would copy, row by row), `views` `[n, q, d]` (q views of each sample). A
            bare `[n, d]` is `encoder`, a bare `[b, t, d]` `tokens`.
        history: rows of metrics.jsonl, oldest first.
        thresholds: where the lines are drawn.

    Returns:
        The verdict, its findings, every figure.

    Raises:
        ValueError: an unknown name, a shape that does not fit it, a dtype that is not real, or nothing to measure.
    """
    tensors = _tensors(features)
    figures = measure(tensors) | measure_history(history)
    case = Case(figures, thresholds)
    findings = [finding for rule in RULES if (finding := rule(case)) is not None]
    findings.sort(key=lambda finding: finding.verdict.gravity)
    verdict = findings[0].verdict if findings else Verdict.HEALTHY
    first = "encoder" if "encoder" in tensors else next(iter(tensors))
    return Diagnosis(verdict, tuple(findings), figures, int(figures[f"{first}/num_samples"]))


def _tensors(features: Mapping[str, Array] | Array) -> dict[str, Tensor]:
    if not isinstance(features, Mapping):
        features = {"tokens" if features.ndim == 3 else "encoder": features}
    tensors = {name: _tensor(name, value) for name, value in features.items()}
    for name in ("tokens", "time", "views"):
        if name in tensors:
            tensors.setdefault("encoder", tensors[name].mean(dim=1))
    if not tensors:
        raise ValueError(f"diagnose: there are no features; give one or more of {', '.join(NUM_AXES)}.")
    return tensors


def _tensor(name: str, value: Array) -> Tensor:
    if name not in NUM_AXES:
        near = difflib.get_close_matches(name, NUM_AXES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"diagnose: unknown feature {name!r}.{hint} Known are {', '.join(NUM_AXES)}.")
    try:
        tensor = torch.as_tensor(value)
    except TypeError as error:
        raise ValueError(f"diagnose: {name} is not an array of real numbers: {error}.") from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"diagnose: {name} must hold real numbers, got {tensor.dtype}.")
    if tensor.ndim != NUM_AXES[name] or 0 in tensor.shape:
        axes = "[n, d]" if NUM_AXES[name] == 2 else "[b, k, d]"
        raise ValueError(f"diagnose: {name} must be {axes} and not empty, got {tuple(tensor.shape)}.")
    return tensor.detach().to("cpu").double()

"""A `torch.export` program, .pt2: for torch without torchjepa, and for AOTInductor and ExecuTorch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from torchjepa.hub.export import Consumer, Format, Job
from torchjepa.hub.tracing import halved, open_axes, quiet_tracing


def _write(job: Job, path: Path) -> None:
    part = halved(job.part) if job.precision == "half" else job.part
    with quiet_tracing(part):
        program = torch.export.export(
            part.network,
            tuple(part.inputs.values()),
            dynamic_shapes=open_axes(part) if job.dynamic else None,
        )
    preprocessing = job.source.preprocessing
    extra = {} if preprocessing is None else {"preprocessing.json": json.dumps(asdict(preprocessing))}
    with quiet_tracing(part):
        torch.export.save(program, path, extra_files={"pool": job.source.pool, **extra})


def _read(job: Job, path: Path) -> Consumer:
    network = torch.export.load(path).module()

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            found = network(*inputs.values())
        return dict(zip(job.part.outputs, found if isinstance(found, tuple) else (found,)))

    return run


FORMAT = Format(
    write=_write,
    read=_read,
    consumer=lambda: f"torch.export.load of torch {torch.__version__}",
    suffix=".pt2",
    parts=("encoder", "predictor", "rollout"),
    precisions=("full", "half"),
    dynamic=True,
    refusals={"int8": "torch's dynamic quantization cannot be traced; use --half, or --format onnx --int8"},
)

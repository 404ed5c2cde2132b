"""ONNX, read by onnxruntime and most deployment tools; weights beyond the format's 2 GB go to a file beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchjepa.hub.export import Consumer, Format, Job
from torchjepa.hub.tracing import halved, open_axes, quiet_tracing

_LARGEST = 1_900_000_000  # a protobuf message ends at 2 GiB


def _write(job: Job, path: Path) -> None:
    _require()
    part = halved(job.part) if job.precision == "half" else job.part
    size = sum(tensor.numel() * tensor.element_size() for tensor in part.network.state_dict().values())
    with quiet_tracing(part):
        program = torch.onnx.export(
            part.network,
            tuple(part.inputs.values()),
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            dynamic_shapes=open_axes(part) if job.dynamic else None,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(_description(job))
    full = path.with_name(f".{path.name}") if job.precision == "int8" else path
    program.save(full, external_data=size > _LARGEST)
    if job.precision == "int8":
        with quiet_tracing(part):
            _quantize(full, path, size > _LARGEST)


def _quantize(full: Path, path: Path, external: bool) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        full, path, weight_type=QuantType.QInt8, per_channel=True, use_external_data_format=external
    )
    for leftover in full.parent.glob(f"{full.name}*"):
        leftover.unlink()


def _read(job: Job, path: Path) -> Consumer:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = session.run(list(job.part.outputs), {name: value.numpy() for name, value in inputs.items()})
        return {name: torch.from_numpy(value) for name, value in zip(job.part.outputs, found)}

    return run


def _description(job: Job) -> dict[str, str]:
    values: dict[str, Any] = {"part": job.part.name, "pool": job.source.pool, "family": job.source.family}
    if job.source.preprocessing is not None:
        values["preprocessing"] = json.dumps(asdict(job.source.preprocessing))
    return {f"torchjepa.{name}": value for name, value in values.items()}


def _require() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"export: onnx needs {error.name}: pip install 'torchjepa[onnx]'.", name=error.name
        ) from None


def _consumer() -> str:
    _require()
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


FORMAT = Format(
    write=_write,
    read=_read,
    consumer=_consumer,
    suffix=".onnx",
    parts=("encoder", "predictor", "rollout"),
    precisions=("full", "half", "int8"),
    dynamic=True,
    refusals={},
)

"""A timm folder: config.json and model.safetensors for `timm.create_model`; images only, where timm is installed."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from torchjepa.hub.export import Consumer, Format, Job
from torchjepa.hub.parts import input_shape, position_table, require_vit
from torchjepa.hub.states import export_state

# Of timm's vision transformers the one without class token; what the model at hand has in another size is overridden.
_ARCHITECTURE = "vit_base_patch16_gap_224"


def _write(job: Job, path: Path) -> None:
    model = require_vit(job.source.model, "timm")
    shape = input_shape(model, job.source.preprocessing)
    # The released I-JEPA is written in timm's names.
    state = export_state({"target_encoder": model}, "ijepa", grid=model.grid(shape[1:]))
    state["target_encoder.module.pos_embed"] = position_table(model, shape[1:])
    dtype = torch.float16 if job.precision == "half" else torch.float32
    path.mkdir()
    weights = {
        name.removeprefix("target_encoder.module."): tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in state.items()
    }
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(timm_config(job), indent=2) + "\n")


def timm_config(job: Job) -> dict[str, Any]:
    """What timm's `create_model` needs, in the layout of its folders on the hub."""
    config: Any = job.source.model.config
    shape = input_shape(job.source.model, job.source.preprocessing)
    pictures = job.source.preprocessing
    normalisation = {} if pictures is None else {"mean": list(pictures.mean), "std": list(pictures.std)}
    return {
        "architecture": _ARCHITECTURE,
        "num_classes": 0,
        "num_features": config["embed_dim"],
        "global_pool": "avg",
        "model_args": {
            "img_size": list(shape[1:]),
            "patch_size": config["patch_size"],
            "in_chans": config["in_channels"],
            **{name: config[name] for name in ("embed_dim", "depth", "num_heads", "mlp_ratio")},
        },
        "pretrained_cfg": {
            "input_size": list(shape),
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            **normalisation,
        },
    }


def _read(job: Job, path: Path) -> Consumer:
    config = json.loads((path / "config.json").read_text())
    model = (
        _timm()
        .create_model(
            config["architecture"],
            num_classes=0,
            global_pool="avg",
            checkpoint_path=str(path / "model.safetensors"),
            **config["model_args"],
        )
        .eval()
    )

    @torch.no_grad()
    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tokens = model.forward_features(inputs["pixels"])
        pooled = {"features": model(inputs["pixels"])} if job.source.pool == "mean" else {}
        return {"tokens": tokens, **pooled}

    return run


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "export: timm is not installed: pip install timm. The file is read back by timm itself.",
            name="timm",
        ) from None


FORMAT = Format(
    write=_write,
    read=_read,
    consumer=lambda: f"timm {_timm().__version__}",
    suffix="",
    parts=("encoder",),
    precisions=("full", "half"),
    dynamic=False,
    refusals={
        "predictor": "timm has no predictors; use --format safetensors, onnx or torch-export",
        "rollout": "timm has no predictors; use --format safetensors, onnx or torch-export",
        "int8": "timm holds weights and no arithmetic; use --half, or --format onnx --int8",
    },
)

"""A transformers folder: `IJepaModel` for images, `VJEPA2Model` (encoder and predictor) for videos.

The image processor does what `Preprocessing` does. The video processor of transformers resizes to 256/224 of the crop
whatever its file says, as V-JEPA 2 was evaluated, and so shows the network a little less of each frame than ours.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from torchjepa.data import Preprocessing
from torchjepa.hub.export import Consumer, Format, Job
from torchjepa.hub.parts import input_shape, position_table, require_vit
from torchjepa.hub.states import export_state
from torchjepa.nn import Predictor

_VIDEO_AXES = 3


def _write(job: Job, path: Path) -> None:
    model = require_vit(job.source.model, "transformers")
    shape = input_shape(model, job.source.preprocessing)
    parts: dict[str, nn.Module] = {"encoder": model}
    if _takes_videos(model):
        family, predictor = "transformers_vjepa2", _predictor(job)
        parts["predictor"] = predictor
        config = _vjepa2_config(model.config, predictor.config, shape)
    else:
        family, config = "transformers_ijepa", _ijepa_config(model.config, shape)
    dtype = torch.float16 if job.precision == "half" else torch.float32
    state = export_state(parts, family, grid=model.grid(shape[1:]))
    if not _takes_videos(model):
        state["embeddings.position_embeddings"] = position_table(model, shape[1:])
    weights = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    path.mkdir()
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    _dump(path / "config.json", {**config, "dtype": str(dtype).removeprefix("torch.")})
    if job.source.preprocessing is not None:
        name = "video_preprocessor_config.json" if _takes_videos(model) else "preprocessor_config.json"
        _dump(path / name, _processor(job.source.preprocessing))


def _ijepa_config(config: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    return {
        "architectures": ["IJepaModel"],
        "model_type": "ijepa",
        "hidden_size": config["embed_dim"],
        "num_hidden_layers": config["depth"],
        "num_attention_heads": config["num_heads"],
        "intermediate_size": round(config["embed_dim"] * config["mlp_ratio"]),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,  # transformers' default of 1e-12 is not the released network's
        "image_size": _one_or_both(shape[1:]),
        "patch_size": _one_or_both(config["patch_size"]),
        "num_channels": config["in_channels"],
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _vjepa2_config(
    config: Mapping[str, Any], predictor: Mapping[str, Any], shape: tuple[int, ...]
) -> dict[str, Any]:
    _, frames, height, width = shape
    tubelet, *patch = config["patch_size"]
    if height != width or patch[0] != patch[1]:
        raise ValueError(
            f"export: transformers' VJEPA2Model takes square frames and patches, this one {height} x {width} and "
            f"{patch[0]} x {patch[1]}; use --format safetensors, onnx or torch-export."
        )
    return {
        "architectures": ["VJEPA2Model"],
        "model_type": "vjepa2",
        "patch_size": patch[0],
        "crop_size": height,
        "frames_per_clip": frames,
        "tubelet_size": tubelet,
        "in_chans": config["in_channels"],
        "hidden_size": config["embed_dim"],
        "num_hidden_layers": config["depth"],
        "num_attention_heads": config["num_heads"],
        "mlp_ratio": config["mlp_ratio"],
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "pred_hidden_size": predictor["embed_dim"],
        "pred_num_hidden_layers": predictor["depth"],
        "pred_num_attention_heads": predictor["num_heads"],
        "pred_mlp_ratio": predictor["mlp_ratio"],
        "pred_num_mask_tokens": predictor["num_mask_tokens"],
    }


def _processor(preprocessing: Preprocessing) -> dict[str, Any]:
    """Shortest edge to the size and a centred square of it: what `Preprocessing` does the other way round."""
    size = preprocessing.image_size
    kind = (
        {"video_processor_type": "VJEPA2VideoProcessor"}
        if preprocessing.num_frames
        else {"image_processor_type": "CLIPImageProcessor"}
    )
    return {
        **kind,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "do_convert_rgb": preprocessing.num_channels == 3,
    }


def _read(job: Job, path: Path) -> Consumer:
    library = _transformers()
    logging, before = library.logging, library.logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, told = library.AutoModel.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()
    wrong = [*told["missing_keys"], *told["unexpected_keys"], *told["mismatched_keys"]]
    if wrong:
        raise ValueError(
            f"export: transformers does not find its way in the file: {', '.join(map(str, wrong[:5]))}."
        )
    model.eval()

    @torch.no_grad()
    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not _takes_videos(job.source.model):
            return {"tokens": model(inputs["pixels"]).last_hidden_state}
        clips = inputs["pixels"].transpose(1, 2)
        return {"tokens": model(clips, skip_predictor=True).last_hidden_state}

    return run


def _predictor(job: Job) -> Predictor:
    predictor = job.source.parts.get("predictor")
    if not isinstance(predictor, Predictor):
        raise ValueError(
            "export: transformers' VJEPA2Model holds the predictor of masked tokens too, and this source has none; use "
            "--format safetensors, onnx or torch-export, or load it with which='all'."
        )
    return predictor


def _takes_videos(model: Any) -> bool:
    return len(model.patch_size) == _VIDEO_AXES


def _one_or_both(lengths: Any) -> int | list[int]:
    return lengths[0] if len(set(lengths)) == 1 else list(lengths)


def _dump(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "export: transformers is not installed: pip install transformers. The folder is read back by it.",
            name="transformers",
        ) from None


FORMAT = Format(
    write=_write,
    read=_read,
    consumer=lambda: f"transformers {_transformers().__version__}",
    suffix="",
    parts=("encoder",),
    precisions=("full", "half"),
    dynamic=False,
    refusals={
        "predictor": "a VJEPA2Model holds its predictor beside the encoder: leave --part out",
        "rollout": "transformers has no action-conditioned predictor; use --format safetensors, onnx or torch-export",
        "int8": "transformers quantizes while loading; use --half, or --format onnx --int8",
    },
)

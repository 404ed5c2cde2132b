"""The deployable encoder: a folder with its configuration, weights and preprocessing.

`config.json` says how to build it, `model.safetensors` holds the weights, `preprocessing.json` says what
the pictures went through.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import torchjepa.nn
from torchjepa.data import Preprocessing
from torchjepa.nn import pool_by_name

FORMAT = 1
CUSTOM = "custom"
_REQUIRED = {"format", "architecture", "kwargs", "pool"}
_OPTIONAL = {"class", "extra"}


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder read from a folder, ready to use.

    Args:
        model: the network, in evaluation mode: inputs `[b, c, ...]` to tokens `[b, n, d]`.
        pool: name of the pooling that it was judged with, for `torchjepa.nn.pool_by_name`.
        preprocessing: what an image goes through before it meets the model.
        config: the whole of `config.json`.
    """

    model: nn.Module
    pool: str
    preprocessing: Preprocessing
    config: Mapping[str, Any]


def save_encoder(
    folder: str | Path,
    encoder: nn.Module,
    *,
    pool: str,
    preprocessing: Preprocessing,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write an encoder to a folder that `load_encoder` reads; the folder appears whole or not at all.

    An encoder of `torchjepa.nn` is stored with its `config` (constructor arguments), so that it can be built
    again; any other is stored as `custom`, and whoever loads it brings the network along.

    Args:
        folder: where to write; what is there is replaced.
        encoder: the network.
        pool: name of the pooling to judge and use it with.
        preprocessing: what an image goes through before it meets the encoder.
        extra: anything else worth keeping, such as recipe and step; must fit into JSON.

    Returns:
        The folder.

    Raises:
        ValueError: no such pooling, or `extra` or the configuration of the encoder does not fit into JSON.
    """
    pool_by_name(pool)
    folder = Path(folder)
    own = _own_architectures().get(type(encoder).__name__) is type(encoder)
    config = {
        "format": FORMAT,
        "architecture": type(encoder).__name__ if own else CUSTOM,
        "class": f"{type(encoder).__module__}.{type(encoder).__qualname__}",
        "kwargs": encoder.config if own else {},
        "pool": pool,
        "extra": dict(extra or {}),
    }
    texts = {"config.json": _to_json(config), "preprocessing.json": _to_json(asdict(preprocessing))}
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, text in texts.items():
        (partial / name).write_text(text)
    weights = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in encoder.state_dict().items()
    }
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    _swap_in(partial, folder)
    return folder


def load_encoder(folder: str | Path, model: nn.Module | None = None) -> LoadedEncoder:
    """Read an encoder that `save_encoder` wrote: every tensor in its place, or an error.

    Args:
        folder: the folder, `runs/<name>/encoder` say.
        model: the network to fill, needed for an architecture that `torchjepa.nn` does not have; otherwise
            it is built from `config.json`.

    Raises:
        ValueError: a file is missing or unreadable, a key is unknown or missing, the architecture is not
            one of `torchjepa.nn`, or tensors are missing, left over or of another shape.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors", "preprocessing.json"):
        if not (folder / name).is_file():
            raise ValueError(
                f"load_encoder: {folder} has no {name}; expected a folder that save_encoder wrote."
            )
    config = _read_config(folder / "config.json")
    if model is None:
        model = _build(config, folder)
    _fill(model, folder / "model.safetensors")
    preprocessing = _read_preprocessing(folder / "preprocessing.json")
    return LoadedEncoder(model.eval(), config["pool"], preprocessing, config)


def _own_architectures() -> dict[str, Any]:
    # The encoders of torchjepa.nn and nothing else: a file never names what gets imported.
    named = {name: getattr(torchjepa.nn, name) for name in torchjepa.nn.__all__}
    return {name: part for name, part in named.items() if isinstance(part, type) and hasattr(part, "grid")}


def _build(config: Mapping[str, Any], folder: Path) -> nn.Module:
    name = config["architecture"]
    if name == CUSTOM:
        raise ValueError(
            f"load_encoder: {folder} holds a custom architecture ({config.get('class', 'unnamed')}); "
            "build it yourself and pass it: load_encoder(folder, model=...)."
        )
    known = _own_architectures()
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"load_encoder: {folder} names the architecture {name!r}; torchjepa.nn has "
            f"{', '.join(sorted(known))}. Pass the network itself as model=..., or update torchjepa."
        )
    try:
        return known[name](**config["kwargs"])
    except TypeError as error:
        raise ValueError(
            f"load_encoder: {folder}: {name} does not take the stored arguments ({error})."
        ) from None


def _fill(model: nn.Module, path: Path) -> None:
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"load_encoder: {path} is damaged or not a safetensors file ({error}).") from None
    wanted = model.state_dict()
    _refuse(path, "lacks", sorted(wanted.keys() - stored.keys()))
    _refuse(path, "has, and the model does not,", sorted(stored.keys() - wanted.keys()))
    _refuse(
        path,
        "has in another shape",
        [_shapes(name, stored, wanted) for name in wanted if stored[name].shape != wanted[name].shape],
    )
    model.load_state_dict(stored)


def _shapes(name: str, stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    return f"{name} {tuple(stored[name].shape)} where the model has {tuple(wanted[name].shape)}"


def _refuse(path: Path, verb: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise ValueError(
            f"load_encoder: {path} {verb} {len(names)} of the tensors: {', '.join(names[:5])}{more}; "
            "nothing was loaded."
        )


def _read_config(path: Path) -> dict[str, Any]:
    config = _from_json(path)
    if config.get("format") != FORMAT:
        raise ValueError(
            f"load_encoder: {path} is of format {config.get('format')!r}, and this torchjepa reads {FORMAT}: "
            "update it, or save the encoder again."
        )
    _check_keys(path, config, _REQUIRED, _OPTIONAL)
    if not isinstance(config["kwargs"], dict):
        raise ValueError(f"load_encoder: {path}: kwargs must be an object, got {config['kwargs']!r}.")
    pool_by_name(str(config["pool"]))
    return config


def _read_preprocessing(path: Path) -> Preprocessing:
    values = _from_json(path)
    _check_keys(path, values, {field.name for field in fields(Preprocessing)}, set())
    return Preprocessing(**values)


def _check_keys(path: Path, values: Mapping[str, Any], required: set[str], optional: set[str]) -> None:
    missing, unknown = sorted(required - values.keys()), sorted(values.keys() - required - optional)
    if missing or unknown:
        raise ValueError(
            f"load_encoder: {path}: missing keys {missing}, unknown keys {unknown}; "
            f"expected {sorted(required | optional)}."
        )


def _from_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"load_encoder: {path} is not JSON ({error}).") from None
    if not isinstance(values, dict):
        raise ValueError(f"load_encoder: {path} must hold an object, got {type(values).__name__}.")
    return values


def _to_json(values: Mapping[str, Any]) -> str:
    try:
        return json.dumps(values, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"save_encoder: the configuration does not fit into JSON ({error}).") from None


def _swap_in(partial: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)

"""From one layout of weights to another: ours, the released files', transformers'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from torchjepa.hub.encoder import OWN_FAMILY
from torchjepa.hub.export import export
from torchjepa.hub.families import families
from torchjepa.hub.family import kind_of
from torchjepa.hub.load import Pretrained, load
from torchjepa.hub.save import save
from torchjepa.hub.staging import staged
from torchjepa.hub.states import export_state
from torchjepa.nn import ActionPredictor, ViT
from torchjepa.nn.rope import RotaryTables

TRANSFORMERS = "transformers"
_PICKLES = (".pth.tar", ".pt", ".pth", ".bin")
_SAFETENSORS = ".safetensors"


@dataclass(frozen=True)
class Converted:
    """What was written.

    Args:
        path: the file or folder.
        layout: `torchjepa`, `transformers`, or the family whose released files look like this.
        parts: the networks in it.
        notes: how it was checked, and what was left out.
    """

    path: Path
    layout: str
    parts: tuple[str, ...]
    notes: tuple[str, ...]


def layouts() -> tuple[str, ...]:
    """Every layout that `convert` writes."""
    official = (name for name in families() if not name.startswith(TRANSFORMERS))
    return (OWN_FAMILY, TRANSFORMERS, *official)


def convert(
    source: str | Path,
    path: str | Path,
    *,
    to: str | None = None,
    num_heads: int | Mapping[str, int] | None = None,
    family: str | None = None,
) -> Converted:
    """Write weights in another layout, read them back and compare every bit.

    Args:
        source: what `torchjepa.load` opens; all of its networks are converted.
        path: a folder, or a file that ends in `.safetensors`, `.pt`, `.pth`, `.pth.tar` or `.bin`. What is there is
            replaced.
        to: the layout. By default `torchjepa` for a folder, and for a file that of the released files which hold
            such networks: `ijepa`, `vjepa`, `vjepa2`, `vjepa2_ac`, `vjepa2_probe`. A pickle holds plain dictionaries
            of tensors, `.safetensors` the same names flat.
        num_heads: attention heads, where the source does not tell.
        family: family of the source, where its tensors alone do not tell.

    Raises:
        ValueError: the source is refused, the layout has no place for its networks, or path and layout do not fit.
    """
    path = Path(path)
    pretrained = load(source, "all", num_heads=num_heads, family=family)
    is_file = path.name.endswith((*_PICKLES, _SAFETENSORS))
    layout = to or (_released_layout(pretrained.parts) if is_file else OWN_FAMILY)
    if layout not in layouts():
        raise ValueError(f"convert: there is no layout {layout!r}; choose among {', '.join(layouts())}.")
    if is_file == (layout in (OWN_FAMILY, TRANSFORMERS)):
        wanted = "a folder, without ending" if is_file else f"a file: {', '.join((_SAFETENSORS, *_PICKLES))}"
        raise ValueError(f"convert: the layout {layout} is {wanted}, got {path}.")
    parts = dict(pretrained.parts)
    with staged(path) as written:
        if layout == TRANSFORMERS:
            parts = _transformers_parts(pretrained)
            exported = export(pretrained, written, format=TRANSFORMERS)
            deviation = max(exported.deviations.values())
            notes = [f"{exported.consumer} gives tokens to {deviation:.1e} of the largest value"]
        else:
            _write(pretrained, written, layout)
            _check_bits(pretrained, written)
            notes = [f"read back: {_count(parts)} tensors, every bit the same"]
    left_out = sorted(pretrained.parts.keys() - parts.keys())
    if left_out:
        notes.append(f"left out, because {layout} has no place for it: {', '.join(left_out)}")
    if pretrained.report.left_over:
        notes.append(
            f"left out: {len(pretrained.report.left_over)} tensors of the source that are of no network"
        )
    return Converted(path, layout, tuple(parts), tuple(notes))


def _transformers_parts(pretrained: Pretrained) -> dict[str, nn.Module]:
    # One encoder, and beside that of videos its predictor.
    takes_videos = isinstance(pretrained.model, ViT) and len(pretrained.model.patch_size) == 3
    return {
        name: part
        for name, part in pretrained.parts.items()
        if part is pretrained.model or (takes_videos and name == "predictor")
    }


def _released_layout(parts: Mapping[str, nn.Module]) -> str:
    """The family whose released files hold networks like these."""
    kinds = {kind_of(name): part for name, part in parts.items()}
    if isinstance(kinds.get("predictor"), ActionPredictor):
        return "vjepa2_ac"
    encoder = kinds.get("encoder")
    if encoder is None and "classifier" in kinds:
        return "vjepa2_probe"
    if not isinstance(encoder, ViT) or len(encoder.patch_size) == 1:
        raise ValueError(
            f"convert: no released file holds a {type(encoder).__name__}; convert to a folder of ours, or export it."
        )
    if len(encoder.patch_size) == 2:
        return "ijepa"
    return "vjepa2" if isinstance(encoder.positions, RotaryTables) else "vjepa"


def _write(pretrained: Pretrained, path: Path, layout: str) -> None:
    if layout == OWN_FAMILY:
        save(pretrained, path)
        return
    parts = {_group(name): part for name, part in pretrained.parts.items()}
    state = {name: tensor.contiguous() for name, tensor in export_state(parts, layout).items()}
    if path.name.endswith(_SAFETENSORS):
        save_file({name: tensor.clone() for name, tensor in state.items()}, path, metadata={"format": "pt"})
    else:
        torch.save(_nested(state), path)


def _group(part: str) -> str:
    # Released probes are a list, one for each setting that was tried.
    return "classifiers.0" if kind_of(part) == "classifier" else part


def _nested(state: Mapping[str, Tensor]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for full, tensor in state.items():
        group, _, name = full.partition(".")
        if group == "classifiers":
            (probe,) = nested.setdefault(group, [{}])
            probe[name.partition(".")[2]] = tensor
        else:
            nested.setdefault(group, {})[name] = tensor
    return nested


def _check_bits(pretrained: Pretrained, path: Path) -> None:
    heads: dict[str, int] = {}
    for name, part in pretrained.parts.items():
        config: Mapping[str, Any] = getattr(part, "config", {})
        if "num_heads" in config:
            heads[kind_of(name)] = config["num_heads"]
    again = load(path, "all", num_heads=heads)
    found = {kind_of(name): part for name, part in again.parts.items()} | dict(again.parts)
    for name, part in pretrained.parts.items():
        twin = found[name] if name in found else found[kind_of(name)]
        state = twin.state_dict()
        for key, tensor in part.state_dict().items():
            # A folder of ours is read in float32, which holds whatever the source had.
            if not torch.equal(tensor.to(state[key].dtype), state[key]):
                raise ValueError(f"convert: {name}.{key} reads back as other numbers; nothing was kept.")


def _count(parts: Mapping[str, nn.Module]) -> int:
    return sum(len(part.state_dict()) for part in parts.values())

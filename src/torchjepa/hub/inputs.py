"""What an input goes through before it meets a loaded encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from torchjepa.data import Preprocessing
from torchjepa.hub.family import Family


def infer_preprocessing(
    family: Family, encoder: nn.Module, config: Mapping[str, Any], processor: Mapping[str, Any]
) -> tuple[Preprocessing | None, tuple[str, ...]]:
    """The preprocessing that an encoder was trained with, as far as the source tells.

    Size: of the processor's crop, of `config.json`, of the position table, else what is usual in the family; mean and
    std: the processor's, else ImageNet's, which all released models have.

    Args:
        family: gives what is usual.
        encoder: the network; its `image_size` came from the position table.
        config: `config.json`, may be empty.
        processor: `preprocessor_config.json`, may be empty.

    Returns:
        The preprocessing, `None` for inputs that are no squares; and what was assumed.
    """
    kwargs: dict[str, Any] = encoder.config  # type: ignore[assignment]
    size = _side(processor.get("crop_size")) or _side(processor.get("size"))
    size = size or _side(config.get("image_size")) or _side(config.get("crop_size"))
    notes: tuple[str, ...] = ()
    if size is None and kwargs["image_size"]:
        height, width = kwargs["image_size"][-2:]
        if height != width:
            note = f"inputs of {height} x {width} are no squares: no preprocessing is attached"
            return None, (note,)
        size = height
    if size is None:
        size = family.image_size
        notes = (
            f"the file does not say its input size; {size} pixels, usual in {family.title}, are assumed",
        )
    normalisation = {
        ours: tuple(processor[theirs])
        for ours, theirs in {"mean": "image_mean", "std": "image_std"}.items()
        if theirs in processor
    }
    return Preprocessing(
        image_size=size,
        num_channels=kwargs["in_channels"],
        num_frames=_frames(family, kwargs, config),
        frame_rate=family.frame_rate,
        **normalisation,
    ), notes


def _frames(family: Family, kwargs: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    if len(kwargs["patch_size"]) < 3:
        return None
    return config.get("frames_per_clip") or (kwargs["image_size"] or [family.num_frames])[0]


def _side(size: Any) -> int | None:
    """The side of a square, in any of the ways that transformers writes it down."""
    if isinstance(size, Mapping):
        size = [size.get("height"), size.get("width")]
    if isinstance(size, (list, tuple)):
        size = size[0] if len(set(size)) == 1 else None
    return size if isinstance(size, int) else None

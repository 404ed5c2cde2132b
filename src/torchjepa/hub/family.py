"""What a family of checkpoints is: the tables that its file in `hub/families` fills in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torchjepa.hub.keymap import KeyMap, Shape

# For each of our tensors the shapes of those in the file that it is made of.
Shapes = Mapping[str, tuple[Shape, ...]]


@dataclass(frozen=True)
class PositionTable:
    """The position table that a file holds although it can be computed.

    Args:
        name: its name in the file, without prefix.
        layouts: layouts of `sincos_positions` that it may have; the first one where the file has none.
        used: whether the network reads it; a rotary one does not, and old files hold one all the same.
    """

    name: str
    layouts: tuple[str, ...]
    used: bool = True


@dataclass(frozen=True)
class Network:
    """One kind of network of a family.

    Args:
        architecture: its name in `torchjepa.nn`.
        rules: its tensors, ours and theirs.
        infer: the arguments that follow from the shapes, all but the heads and what `fixed` has.
        signature: tensors that tell it from other families', with their number of axes.
        heads_by: the arguments that the known models are looked up by.
        heads: heads of the known models.
        prefix: what stands before each name when a file is written.
        fixed: further arguments, the same for every size.
        table: its position table, where it has one.
        config_heads: the key of `config.json` that says the number of heads.
    """

    architecture: str
    rules: KeyMap
    infer: Callable[[Shapes], dict[str, Any]]
    signature: Mapping[str, int]
    heads_by: tuple[str, ...] = ("embed_dim", "depth")
    heads: Mapping[tuple[int, ...], int] = field(default_factory=dict)
    prefix: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    table: PositionTable | None = None
    config_heads: str | None = None


@dataclass(frozen=True)
class Family:
    """A family of checkpoints: one file of `hub/families`.

    Args:
        name: what `load(..., family=...)` calls it.
        title: what people call it.
        networks: its networks by kind: `encoder`, `predictor`, `classifier`.
        names_roles: whether its files tell the online encoder from the target encoder.
        accepts: a last look at files that fit the signatures: network kind to names to shapes.
        image_size: side of the pictures where the file does not say, 0 where nothing is usual.
        num_frames: frames of a clip where the file does not say, `None` for images.
        frame_rate: frames a second that clips are sampled at, `None` for images.
        config: what `config.json` must say for the network to be ours.
    """

    name: str
    title: str
    networks: Mapping[str, Network]
    names_roles: bool = True
    accepts: Callable[[Mapping[str, Mapping[str, Shape]]], bool] = lambda parts: True
    image_size: int = 224
    num_frames: int | None = None
    frame_rate: float | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


def kind_of(part: str) -> str:
    """The kind of network that a part of a checkpoint is: both encoders are `encoder`."""
    if part.endswith("encoder"):
        return "encoder"
    return "classifier" if part.startswith("classifier") else part

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
        used: whether the network reads it; a rotary one does not, and released files hold one all the same.
    """

    name: str
    layouts: tuple[str, ...]
    used: bool = True


@dataclass(frozen=True)
class Network:
    """One kind of network of a family.

    Args:
        architecture: its name in `torchjepa.nn`, or `Linear`.
        rules: its tensors, ours and theirs; of two rules for one of ours the first is the one that is written.
        infer: the arguments that follow from the shapes, all but the heads and what `fixed` has.
        signature: tensors that tell it from other families', with their number of axes.
        heads_by: the arguments that the known models are looked up by; none for a network without heads.
        heads: heads of the known models.
        group: what the file calls it, the name of the part by default.
        prefix: what stands before each name in there.
        fixed: further arguments, the same for every size.
        table: its position table, where it has one.
        unused: tensors that the official network holds and never uses, and why.
        config_heads: the key of `config.json` that says the number of heads.
        config_sizes: arguments of ours that `config.json` says too, and its keys.
    """

    architecture: str
    rules: KeyMap
    infer: Callable[[Shapes], dict[str, Any]]
    signature: Mapping[str, int]
    heads_by: tuple[str, ...] = ("embed_dim", "depth")
    heads: Mapping[tuple[int, ...], int] = field(default_factory=dict)
    group: str | None = None
    prefix: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    table: PositionTable | None = None
    unused: Mapping[str, str] = field(default_factory=dict)
    config_heads: str = ""
    config_sizes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A family of checkpoints: one file of `hub/families`.

    Args:
        name: what `load(..., family=...)` calls it.
        title: what people call it.
        networks: its networks by kind: `encoder`, `predictor`, `classifier`.
        tells_encoders: whether its files have both the online and the target encoder, and say which is which.
        origin: where the one encoder of such files comes from, a sentence for the user, where it is known.
        wrapper: what stands before all other networks in a file that has a classifier.
        accepts: a last look at files that fit the signatures: network kind to names to shapes.
        image_size: side of the pictures where the file does not say.
        num_frames: frames of a clip where the file does not say, `None` for images.
        frame_rate: frames a second that clips are sampled at, `None` for images.
        config: for keys of `config.json` what they must say, and what their absence means.
    """

    name: str
    title: str
    networks: Mapping[str, Network]
    tells_encoders: bool = True
    origin: str = ""
    wrapper: str = ""
    accepts: Callable[[Mapping[str, Mapping[str, Shape]]], bool] = lambda kinds: True
    image_size: int = 224
    num_frames: int | None = None
    frame_rate: float | None = None
    config: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


def kind_of(part: str) -> str:
    """The kind of network that a part of a checkpoint is: both encoders are `encoder`."""
    if part.endswith("encoder"):
        return "encoder"
    return "classifier" if part.startswith("classifier") else part

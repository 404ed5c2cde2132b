"""jepa convert: write weights in another layout: ours, the released files', transformers'; every bit is checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True)
class ConvertCommand:
    """Convert weights from one layout to another, read them back, and compare.

    A folder becomes an encoder folder of torchjepa, or of transformers with --to transformers. A file that ends in
    .pth.tar, .pt, .pth or .bin becomes a checkpoint in the layout of the released files; one that ends in .safetensors
    has the same names, and no pickle.
    """

    source: Annotated[str, tyro.conf.Positional]
    """Run folder, encoder folder, official or transformers checkpoint, or an id on the Hugging Face hub."""
    out: Annotated[str, tyro.conf.Positional]
    """File or folder to write; what is there is replaced."""
    to: str | None = None
    """The layout: torchjepa, transformers, or a family of released files: ijepa, vjepa, vjepa2, vjepa2_ac,
    vjepa2_probe. Default: torchjepa for a folder, and for a file the family with such networks."""
    num_heads: int | None = None
    """Attention heads, for checkpoints that do not tell."""
    family: str | None = None
    """Family of the source, where its tensors do not tell."""


def run(argv: Sequence[str]) -> int:
    """Run `jepa convert` with these arguments."""
    command = tyro.cli(ConvertCommand, args=list(argv), prog="jepa convert")
    from torchjepa.hub.convert import convert

    done = convert(
        command.source, command.out, to=command.to, num_heads=command.num_heads, family=command.family
    )
    print(f"Wrote {', '.join(done.parts)} of {command.source} to {done.path} in the layout {done.layout}")
    for note in done.notes:
        print(f"  {note}")
    return 0

"""Rotary ViT: V-JEPA 2's encoder, small (384 x 12, 6 heads, tubelets of 2 x 16 x 16), on clips

Clips are 8 frames of 128 x 128 (256 tokens, batch 4) and 16 frames of 112 x 112 (392 tokens, batch 2): 16 frames at
224, as published, are too much to repeat on two cores. All have the same weights and the released pairing. Ours in
bf16 is under autocast, as `jepa train --precision bf16-mixed` runs it. `transformers` is its `VJEPA2Model`'s encoder,
called alone; `official` makes the rotary tables again in every layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Comparison, Contenders, count_products, products, relative_distance
from benchmarks.peers import rotary as official
from torchjepa.nn import RotaryPositions, ViT

PATCH = (2, 16, 16)
DIM, DEPTH, HEADS = 384, 12, 6
_TRANSFORMERS = {
    "patch_embed.": "embeddings.patch_embeddings.proj.",
    "blocks.": "layer.",
    "attn.": "attention.",
    "norm.": "layernorm.",
}


@dataclass(frozen=True)
class Clips:
    """What goes in."""

    num_frames: int
    side: int
    batch_size: int

    def __str__(self) -> str:
        return f"{self.num_frames} x {self.side} x {self.side}, batch {self.batch_size}"

    def draw(self) -> Tensor:
        shape = self.batch_size, 3, self.num_frames, self.side, self.side
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class Call:
    """A network on clips: tokens alone, or tokens and the gradients of all its weights."""

    def __init__(
        self, network: nn.Module, embedding: Tensor, clips: Tensor, *, backward: bool, autocast: bool = False
    ) -> None:
        self.network, self.clips = network, clips
        # First the patches' embedding: its gradient comes through all layers.
        others = (weight for weight in network.parameters() if weight is not embedding)
        self.weights = [embedding, *others]
        self.backward, self.autocast = backward, autocast
        self.direction = torch.randn(1, 1, DIM, generator=torch.Generator().manual_seed(1))

    def __call__(self) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(self.backward):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                tokens = self.network(self.clips)
            if not self.backward:
                return (tokens,)
            grads = torch.autograd.grad(
                tokens, self.weights, self.direction.to(tokens.dtype).expand_as(tokens)
            )
            return tokens, *grads


def transformers_model(clips: Clips, **more: int) -> Any:
    """`transformers`' V-JEPA 2 with an encoder of these sizes, its weights not ours yet.

    Args:
        clips: what goes in.
        more: further fields of its configuration.
    """
    from transformers import VJEPA2Config, VJEPA2Model

    config = VJEPA2Config(
        patch_size=PATCH[1],
        tubelet_size=PATCH[0],
        crop_size=clips.side,
        frames_per_clip=clips.num_frames,
        hidden_size=DIM,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        attn_implementation="sdpa",
        **more,
    )
    return VJEPA2Model(config)


def our_encoder() -> ViT:
    """Ours of the same sizes."""
    positions = RotaryPositions(pairing="released")
    return ViT(patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, positions=positions)


class TransformersEncoder(nn.Module):
    """`transformers`' encoder with our weights and our order of axes."""

    def __init__(self, vit: ViT, clips: Clips) -> None:
        super().__init__()
        self.encoder = transformers_model(clips).encoder
        state = _split_projections(vit.state_dict())
        for ours, theirs in _TRANSFORMERS.items():
            state = {name.replace(ours, theirs): value for name, value in state.items()}
        self.embedding = self.encoder.embeddings.patch_embeddings.proj.weight
        _load(self.encoder, state)

    def forward(self, clips: Tensor) -> Tensor:
        return self.encoder(clips.transpose(1, 2)).last_hidden_state


def _split_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    split = {}
    for name, value in state.items():
        if ".qkv." in name:
            for part, rows in zip(("query", "key", "value"), value.chunk(3)):
                split[name.replace("qkv", part)] = rows
        else:
            split[name] = value
    return split


def _load(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = network.state_dict()
    network.load_state_dict({name: value.view_as(own[name]) for name, value in state.items()})


def _official(vit: ViT, clips: Clips) -> official.Encoder:
    network = official.Encoder(PATCH, DIM, DEPTH, HEADS, clips.side // PATCH[1])
    _load(network, vit.state_dict())
    return network


def _build(peer: str, clips: Clips, backward: bool, autocast: bool) -> Contenders:
    vit = our_encoder()
    other = TransformersEncoder(vit, clips) if peer == "transformers" else _official(vit, clips)
    x = clips.draw()
    ours = Call(vit, vit.patch_embed.weight, x, backward=backward, autocast=autocast)
    theirs = Call(other, other.embedding, x, backward=backward)
    # Tokens, and where there are gradients that of the embedding.
    pairs = zip(ours()[:2], theirs()[:2])
    deviation = max(relative_distance([a.flatten()], [b.flatten()]) for a, b in pairs)
    return Contenders(ours, theirs, products(count_products(ours)), deviation)


def comparisons() -> Iterator[Comparison]:
    for clips in (Clips(8, 128, 4), Clips(16, 112, 2)):
        for backward in (False, True):
            what = f"{'forward + backward' if backward else 'forward'}, {clips}"
            for autocast in (False, True):
                yield Comparison(
                    f"{'ours bf16, theirs float32' if autocast else 'float32'}, {what}",
                    "transformers",
                    partial(_build, "transformers", clips, backward, autocast),
                    goal=2.0 if autocast else 1.05,
                    tolerance=5e-2 if autocast else 1e-5,
                    pairs=11,
                )
            yield Comparison(
                f"float32, {what}",
                "official",
                partial(_build, "official", clips, backward, False),
                bar=1.0 if clips.num_frames == 8 and not backward else None,
                tolerance=1e-5,
                pairs=9,
            )

"""V-JEPA 2's encoder and predictor (384 x 12 and 192 x 12, rotary), on clips, beside `transformers`' VJEPA2Model

The whole model with the same weights, as its class runs it: the encoder sees the full clip, the predictor the tokens
of a context (V-JEPA's short-range mask) and predicts those of the targets. Released pairing. Ours in bf16 is under
autocast, as `jepa train --precision bf16-mixed` runs it. *apart* is of the predictions and, where there are
gradients, of that of the patches' embedding, which comes through all layers of both networks.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.harness import Comparison, Contenders, count_products, products, relative_distance
from benchmarks.topics.rotary import DIM, PATCH, Call, Clips, our_encoder, transformers_model
from torchjepa.hub import export_state
from torchjepa.masking import TubeMasking
from torchjepa.nn import Predictor, RotaryPositions
from torchjepa.types import Grid, Masks

_DIM, _DEPTH, _HEADS = 192, 12, 6


class Ours(nn.Module):
    """Encoder and predictor, one after the other."""

    def __init__(self, clips: Clips, masks: Masks) -> None:
        super().__init__()
        self.vit = our_encoder()
        self.predictor = Predictor(
            encoder_dim=DIM,
            embed_dim=_DIM,
            depth=_DEPTH,
            num_heads=_HEADS,
            positions=RotaryPositions(pairing="released"),
            num_mask_tokens=2,
        )
        self.grid: Grid = self.vit.grid((clips.num_frames, clips.side, clips.side))
        self.masks = masks

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.vit(x)
        rows = torch.arange(len(x))[:, None]
        context = tokens[rows, self.masks.context]
        # transformers' predictor asks with the second of its mask tokens.
        return self.predictor(context, self.masks.context, self.masks.targets, self.grid, 1)[:, 0]


class Theirs(nn.Module):
    """`transformers`' model with the weights of ours."""

    def __init__(self, ours: Ours, clips: Clips) -> None:
        super().__init__()
        self.model = transformers_model(
            clips,
            pred_hidden_size=_DIM,
            pred_num_hidden_layers=_DEPTH,
            pred_num_attention_heads=_HEADS,
            pred_num_mask_tokens=2,
        )
        parts = {"encoder": ours.vit, "predictor": ours.predictor}
        self.model.load_state_dict(export_state(parts, "transformers_vjepa2", grid=ours.grid))
        self.context, self.targets = [ours.masks.context], [ours.masks.targets[:, 0]]

    def forward(self, x: Tensor) -> Tensor:
        found = self.model(x.transpose(1, 2), context_mask=self.context, target_mask=self.targets)
        return found.predictor_output.last_hidden_state


def _build(clips: Clips, backward: bool, autocast: bool) -> Contenders:
    grid = Grid(t=clips.num_frames // PATCH[0], h=clips.side // PATCH[1], w=clips.side // PATCH[2])
    masks = TubeMasking.short_range()(grid, clips.batch_size, torch.Generator().manual_seed(0))
    net = Ours(clips, masks)
    # Zeros, as they start, would leave the mask tokens out of what is compared.
    nn.init.normal_(net.predictor.mask_token, std=0.5)
    peer = Theirs(net, clips)
    x = clips.draw()
    embedding = peer.model.encoder.embeddings.patch_embeddings.proj.weight
    ours = Call(net, net.vit.patch_embed.weight, x, backward=backward, autocast=autocast)
    theirs = Call(peer, embedding, x, backward=backward)
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
                    partial(_build, clips, backward, autocast),
                    goal=2.0 if autocast else 1.05,
                    tolerance=5e-2 if autocast else 1e-5,
                    pairs=11,
                )

"""I-JEPA's training step as published and released, plainly: the whole algorithm, nothing saved.

The released code's shape, restated from its description: every patch is embedded by a convolution before the visible
ones are picked; picking goes by an index expanded over the channels; attention is two products and a softmax; the
context is repeated for each target block, with the mask tokens of that block behind it, target block by target block;
every layer computes every token; AdamW with torch's defaults; the target encoder moves parameter by parameter.

Axis letters of this file: `e` channels of one head.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = Attention(dim, num_heads), MLP(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def pick(x: Tensor, ids: Tensor) -> Tensor:
    """Tokens by an index that is as large as what it picks."""
    return torch.gather(x, 1, ids.unsqueeze(-1).repeat(1, 1, x.shape[-1]))


class Encoder(nn.Module):
    def __init__(self, patch_size: int, dim: int, depth: int, num_heads: int, positions: Tensor) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, patch_size, patch_size)
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.register_buffer("positions", positions[None], persistent=False)

    def forward(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.positions
        if ids is not None:
            x = pick(x, ids)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Predictor(nn.Module):
    def __init__(self, encoder_dim: int, dim: int, depth: int, num_heads: int, positions: Tensor) -> None:
        super().__init__()
        self.embed, self.proj = nn.Linear(encoder_dim, dim), nn.Linear(dim, encoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.register_buffer("positions", positions[None], persistent=False)

    def forward(self, context: Tensor, context_ids: Tensor, target_ids: Tensor) -> Tensor:
        b, num_seen = context.shape[:2]
        table = self.positions.repeat(b, 1, 1)
        seen = self.embed(context) + pick(table, context_ids)
        blocks = target_ids.unbind(1)
        places = torch.cat([pick(table, block) for block in blocks])
        asked = self.mask_token.repeat(places.shape[0], places.shape[1], 1) + places
        x = torch.cat([seen.repeat(len(blocks), 1, 1), asked], dim=1)
        for layer in self.blocks:
            x = layer(x)
        return self.proj(self.norm(x)[:, num_seen:])


class Trainer:
    """Encoder, target encoder, predictor and optimizer, and one training step over them.

    Args:
        encoder: the context encoder.
        predictor: the predictor.
        lr: of AdamW.
        weight_decay: of weights; biases and norms have none.
        momentum: of the target encoder.
        autocast: bfloat16 autocast around the forward pass.
    """

    def __init__(
        self,
        encoder: Encoder,
        predictor: Predictor,
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        autocast: bool = False,
    ) -> None:
        self.encoder, self.predictor, self.momentum, self.autocast = encoder, predictor, momentum, autocast
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)
        named = [*encoder.named_parameters(), *predictor.named_parameters()]
        spared = [p for name, p in named if p.ndim == 1 or "bias" in name]
        decayed = [p for name, p in named if not (p.ndim == 1 or "bias" in name)]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr)

    def step(self, x: Tensor, context_ids: Tensor, target_ids: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = self.loss(x, context_ids, target_ids)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for online, target in zip(self.encoder.parameters(), self.target_encoder.parameters()):
                target.mul_(self.momentum).add_((1.0 - self.momentum) * online.detach())
        return loss.detach()

    def loss(self, x: Tensor, context_ids: Tensor, target_ids: Tensor) -> Tensor:
        with torch.no_grad():
            full = self.target_encoder(x)
            full = F.layer_norm(full, (full.shape[-1],))
            wanted = torch.cat([pick(full, block) for block in target_ids.unbind(1)])
        predicted = self.predictor(self.encoder(x, context_ids), context_ids, target_ids)
        return F.smooth_l1_loss(predicted, wanted)


def load(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Take the weights of torchjepa's encoder or predictor, whose names are the same.

    Args:
        module: an `Encoder` or a `Predictor`.
        weights: the state dict.
    """
    taken = dict(weights)
    if isinstance(module, Encoder):
        taken["patch_embed.weight"] = weights["patch_embed.weight"].view_as(module.patch_embed.weight)
    module.load_state_dict(taken)

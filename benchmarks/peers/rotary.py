"""The rotary vision transformer of V-JEPA 2 as released, plainly: everything is computed again in every layer.

Restated from its description: a 3-D convolution embeds the patches; every layer derives each token's place from its id,
for every head, then frequencies, sines and cosines of three axes, once for the queries and once for the keys, turns
each axis' channels on its own and joins them again; attention is torch's fused kernel.

Axis letters of this file: `e` channels of one head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def turn(x: Tensor, place: Tensor) -> Tensor:
    """One axis' channels `[b, heads, n, e]` at places `[b, heads, n]`, angles tiled as released."""
    half = x.shape[-1] // 2
    frequency = 10000 ** -(torch.arange(half, dtype=x.dtype) / half)
    angle = place[..., None] * frequency
    sin, cos = (part.repeat(1, 1, 1, 2) for part in (angle.sin(), angle.cos()))
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack([-second, first], dim=-1).flatten(-2) * sin


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, side: int) -> None:
        super().__init__()
        self.num_heads, self.side = num_heads, side
        self.share = 2 * (dim // num_heads // 3 // 2)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        ids = torch.arange(n).expand(b, self.num_heads, n)
        frame = ids // self.side**2
        row = (ids - frame * self.side**2) // self.side
        column = ids - frame * self.side**2 - row * self.side
        q, k = (self.place(part, (frame, row, column)) for part in (q, k))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))

    def place(self, x: Tensor, places: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        sizes = [self.share] * 3 + [x.shape[-1] - 3 * self.share]
        *axes, rest = x.split(sizes, dim=-1)
        return torch.cat([*(turn(axis, place) for axis, place in zip(axes, places)), rest], dim=-1)


class MLP(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, side: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, side)
        self.mlp = MLP(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """Clips `[b, c, T, H, H]` of `side` x `side` patches a frame to tokens `[b, n, d]`."""

    def __init__(
        self, patch_size: tuple[int, int, int], dim: int, depth: int, num_heads: int, side: int
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Conv3d(3, dim, kernel_size=patch_size, stride=patch_size)
        self.blocks = nn.ModuleList(Block(dim, num_heads, side) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    @property
    def embedding(self) -> nn.Parameter:
        """The weight that patches meet first."""
        return self.patch_embed.weight

    def forward(self, clips: Tensor) -> Tensor:
        x = self.patch_embed(clips).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

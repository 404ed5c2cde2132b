"""The I-JEPA predictor: context tokens and target positions in, predicted target tokens out."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from torchjepa import rng
from torchjepa.nn.attention import Block
from torchjepa.nn.init import FanInStd, fill_normal, init_transformer, rescale_depth
from torchjepa.nn.positions import NO_POSITIONS, SinCosPositions
from torchjepa.types import Grid


class Predictor(nn.Module):
    """A narrow transformer that predicts every target block on its own (I-JEPA, section 3).

    For each block the sequence is [W_in context + positions | mask token + positions]; its transformer output
    at the mask tokens, normalised and mapped back to the encoder's dimension, is the prediction. The m target
    blocks of b samples are one batch of b * m sequences, and the last layer computes the mask tokens alone.

    Args:
        encoder_dim: embedding dimension of the tokens that come in and go out.
        embed_dim: the predictor's own, 384 (I-JEPA; for small encoders it dominates the cost: take half of
            the encoder's).
        depth: number of blocks, 12 (I-JEPA's released ViT-H; 16 for the giant).
        num_heads: number of attention heads, 12; the released models take the encoder's.
        mlp_ratio: hidden width of the MLPs over `embed_dim`, 4.
        positions: layout of the sin-cos positions, see `sincos_positions`: `"wh"` for images (default),
            `"thw"` for videos, `"w"` for sequences; not `"none"`, which would ask for all targets alike.
        init_std: standard deviation of the initial weights and of the mask token, 0.02; see `ViT`. Under
            `FanInStd` the mask token, which has no fan-in, keeps 0.02.
        seed: seed of the initial weights.

    Attributes:
        config: the arguments but for `init_std` and `seed`, fit for JSON.
        encoder_dim: dimension of the tokens that come in and go out.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    def __init__(
        self,
        *,
        encoder_dim: int,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        positions: str = "wh",
        init_std: float | FanInStd = 0.02,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(
                f"{type(self).__name__}: depth must be at least 1, got {depth}: mask tokens see nothing without."
            )
        if positions == NO_POSITIONS:
            raise ValueError(
                f"{type(self).__name__}: positions must not be 'none': the places of the targets are all that it is "
                "told about them; use 'wh' for images, 'thw' for videos, 'w' for sequences."
            )
        self.encoder_dim = encoder_dim
        self._config: dict[str, Any] = {
            "encoder_dim": encoder_dim,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "positions": positions,
        }
        self.embed = nn.Linear(encoder_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.positions = SinCosPositions(embed_dim, positions)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.proj = nn.Linear(embed_dim, encoder_dim)
        init_transformer(self, init_std, seed, "predictor")
        rescale_depth([block.residual_weights() for block in self.blocks])  # type: ignore[operator]
        token_std = 0.02 if isinstance(init_std, FanInStd) else init_std
        fill_normal(self.mask_token, token_std, rng.generator(seed, "init", "mask token"))

    @property
    def config(self) -> dict[str, Any]:
        """The arguments but for `init_std` and `seed`, fit for JSON; the class takes them back."""
        return copy.deepcopy(self._config)

    def forward(
        self,
        context: Float[Tensor, "b n_ctx d"],
        context_ids: Int64[Tensor, "b n_ctx"],
        target_ids: Int64[Tensor, "b m k"],
        grid: Grid,
    ) -> Float[Tensor, "b m k d"]:
        """Predict the tokens of every target block.

        Args:
            context: tokens of the context encoder `[b, n_ctx, d]`.
            context_ids: their places in the grid, int64 `[b, n_ctx]`.
            target_ids: places of the tokens to predict, int64 `[b, m, k]`.
            grid: the encoder's token grid.

        Returns:
            Predicted tokens `[b, m, k, d]`, not normalised.

        Raises:
            ValueError: the position layout leaves out an axis of the grid.
        """
        table = self.positions(grid, self.embed.weight)
        seen = self.embed(context) + table[context_ids]
        asked = self.mask_token + table[target_ids.flatten(1)]
        tokens = self._transform(seen, asked.view(*target_ids.shape, -1))
        return self.proj(self.norm(tokens)).view(*target_ids.shape, -1)

    def _transform(self, seen: Tensor, asked: Tensor) -> Tensor:
        """What the blocks make of the mask tokens `[b, m, k, d]`, in their order, given the context's."""
        m, k = asked.shape[1:3]
        tokens = torch.cat([seen[:, None].expand(-1, m, -1, -1), asked], dim=2).flatten(0, 1)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        return self.blocks[-1](tokens, num_queries=k)

"""The predictor of I-JEPA, V-JEPA and V-JEPA 2: context tokens and target places in, predicted target tokens out."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from torchjepa import rng
from torchjepa.nn.attention import Block, Pattern, attend
from torchjepa.nn.init import FanInStd, fill_normal, init_transformer, rescale_depth
from torchjepa.nn.position_kinds import Positions, position_tables, positions_config, resolve_positions
from torchjepa.nn.positions import NO_POSITIONS
from torchjepa.nn.rope import RotaryTables
from torchjepa.types import Grid


class Predictor(nn.Module):
    """A narrow transformer that predicts every target block on its own (I-JEPA, section 3).

    For each block the sequence is [W_in context + positions | mask token + positions]; its transformer output
    at the mask tokens, normalised and mapped back to the encoder's dimension, is the prediction. The m target
    blocks of b samples are one batch of b * m sequences, and the last layer computes the mask tokens alone.
    Rotary positions (V-JEPA 2) are not added but turn the queries and keys of every block.

    Args:
        encoder_dim: embedding dimension d of the tokens that come in.
        embed_dim: the predictor's own, 384 (I-JEPA; for small encoders it dominates the cost: take half of
            the encoder's).
        depth: number of blocks, 12 (I-JEPA's released ViT-H; 16 for the giant).
        num_heads: number of attention heads, 12; the released I-JEPA and V-JEPA take the encoder's.
        mlp_ratio: hidden width of the MLPs over `embed_dim`, 4.
        positions: layout of the sin-cos positions, see `sincos_positions`: `"wh"` for images (default),
            `"thw"` for videos, `"w"` for sequences; not `"none"`, which would ask for all targets alike.
            Resized and rotary ones as in `ViT`.
        num_mask_tokens: how many mask tokens there are to choose from, 1 (I-JEPA); V-JEPA has one for each of
            its two masks, the released V-JEPA 2 has 10.
        target_dim: dimension of the tokens that go out, `encoder_dim` by default; several levels of a target
            encoder side by side (V-JEPA 2.1) are as many times that.
        init_std: standard deviation of the initial weights and of the mask tokens, 0.02; see `ViT`. Under
            `FanInStd` the mask tokens, which have no fan-in, keep 0.02.
        seed: seed of the initial weights.

    Attributes:
        config: the arguments but for `init_std` and `seed`, fit for JSON.
        encoder_dim: dimension of the tokens that come in.
        target_dim: dimension of the tokens that go out.

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
        positions: Positions | Mapping[str, Any] = "wh",
        num_mask_tokens: int = 1,
        target_dim: int | None = None,
        init_std: float | FanInStd = 0.02,
        seed: int = 0,
    ) -> None:
        super().__init__()
        positions = resolve_positions(positions)
        self._check(depth, positions, num_mask_tokens, target_dim)
        self.encoder_dim = encoder_dim
        self.target_dim = encoder_dim if target_dim is None else target_dim
        self._config: dict[str, Any] = {
            "encoder_dim": encoder_dim,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "positions": positions_config(positions),
            "num_mask_tokens": num_mask_tokens,
            "target_dim": target_dim,
        }
        self.embed = nn.Linear(encoder_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(num_mask_tokens, 1, embed_dim))
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.positions = position_tables(positions, embed_dim, num_heads)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.proj = nn.Linear(embed_dim, self.target_dim)
        init_transformer(self, init_std, seed, "predictor")
        rescale_depth([block.residual_weights() for block in self.blocks])  # type: ignore[operator]
        token_std = 0.02 if isinstance(init_std, FanInStd) else init_std
        fill_normal(self.mask_token, token_std, rng.generator(seed, "init", "mask token"))

    def _check(self, depth: int, positions: Positions, num_mask_tokens: int, target_dim: int | None) -> None:
        name = type(self).__name__
        if depth < 1:
            raise ValueError(
                f"{name}: depth must be at least 1, got {depth}: mask tokens see nothing without."
            )
        if positions == NO_POSITIONS:
            raise ValueError(
                f"{name}: positions must not be 'none': the places of the targets are all that it is "
                "told about them; use 'wh' for images, 'thw' for videos, 'w' for sequences."
            )
        if num_mask_tokens < 1:
            raise ValueError(
                f"{name}: num_mask_tokens must be at least 1, got {num_mask_tokens}; targets are asked for by one."
            )
        if target_dim is not None and target_dim < 1:
            raise ValueError(
                f"{name}: target_dim must be at least 1, got {target_dim}; leave it out for encoder_dim."
            )

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
        mask_index: int = 0,
    ) -> Float[Tensor, "b m k d_target"]:
        """Predict the tokens of every target block.

        Args:
            context: tokens of the context encoder `[b, n_ctx, d]`.
            context_ids: their places in the grid, int64 `[b, n_ctx]`.
            target_ids: places of the tokens to predict, int64 `[b, m, k]`.
            grid: the encoder's token grid.
            mask_index: which mask token asks, 0.

        Returns:
            Predicted tokens `[b, m, k, target_dim]`, not normalised.

        Raises:
            ValueError: the position layout leaves out an axis of the grid, or there is no such mask token.
        """
        mask_token, seen, rotation = self._mask_token(mask_index), self.embed(context), None
        if isinstance(self.positions, RotaryTables):
            rotation = self.positions.rotation(grid, self._lay_out(context_ids, target_ids), seen)
            asked = mask_token.expand(*target_ids.shape, -1)
        else:
            table = self.positions(grid, self.embed.weight)
            seen = seen + table[context_ids]
            asked = (mask_token + table[target_ids.flatten(1)]).view(*target_ids.shape, -1)
        tokens = self._lay_out(seen, asked)
        num_asked = tokens.shape[1] - seen.shape[1]
        pattern = self._pattern(seen.shape[1], target_ids.shape[1])
        for block in self.blocks[:-1]:
            tokens = block(tokens, rotation=rotation, pattern=pattern)
        tokens = self.blocks[-1](tokens, num_asked, rotation, pattern)
        return self.proj(self.norm(tokens)).view(*target_ids.shape, -1)

    def _mask_token(self, index: int) -> Float[Tensor, "1 d"]:
        num_tokens = len(self.mask_token)
        if not 0 <= index < num_tokens:
            raise ValueError(
                f"{type(self).__name__}: no mask_index {index} among {num_tokens} mask tokens; choose 0 to "
                f"{num_tokens - 1}, or build it with more num_mask_tokens."
            )
        return self.mask_token[index]

    def _lay_out(self, seen: Tensor, asked: Tensor) -> Tensor:
        """Context `[b, n, ...]` and blocks `[b, m, k, ...]`, tokens or ids, to the sequences of the transformer."""
        seen = seen[:, None].expand(-1, asked.shape[1], *seen.shape[1:])
        return torch.cat([seen, asked], dim=2).flatten(0, 1)

    def _pattern(self, num_context: int, num_blocks: int) -> Pattern:
        """Which tokens of such a sequence see which."""
        return attend

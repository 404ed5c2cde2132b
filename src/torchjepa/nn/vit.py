"""The vision transformer over a `Grid`: sequences, images and videos are one network."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from torchjepa.nn.attention import Block, Pattern, attend, attend_within
from torchjepa.nn.init import FanInStd, init_transformer, rescale_depth
from torchjepa.nn.intermediates import run_blocks
from torchjepa.nn.patch import patch_grid, patchify
from torchjepa.nn.position_kinds import Positions, position_tables, positions_config, resolve_positions
from torchjepa.nn.rope import RotaryTables
from torchjepa.types import Grid

# The published dimensions (ViT, DeiT, I-JEPA and V-JEPA 2); the MLP ratios of the giants give 6144 and 8192.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"patch_size": 14, "embed_dim": 1280, "depth": 32, "num_heads": 16},
    "giant": {"patch_size": 16, "embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 48 / 11},
    "giant_xformers": {
        "patch_size": 16,
        "embed_dim": 1408,
        "depth": 40,
        "num_heads": 22,
        "mlp_ratio": 48 / 11,
    },
    "gigantic_xformers": {
        "patch_size": 16,
        "embed_dim": 1664,
        "depth": 48,
        "num_heads": 26,
        "mlp_ratio": 64 / 13,
    },
}
_DEFAULT_LAYOUT = {1: "w", 2: "wh", 3: "thw"}


class ViT(nn.Module):
    """A vision transformer without class token: W patches + b + positions, blocks, layer norm.

    Pre-norm blocks with layer norms of eps 1e-6, biases on queries, keys and values and the exact GELU, as
    released. Inputs of any size that the patch divides are served; only the patches asked for are embedded.

    Args:
        patch_size: length of the patch along each spatial axis, in input units. Its number of axes is that
            of the inputs: `(p,)` for `[b, c, L]`, `(p, p)` for `[b, c, H, W]`, `(pt, p, p)` for
            `[b, c, T, H, W]`. One integer means as many axes as `image_size` has, two when that is an integer
            or absent.
        embed_dim: embedding dimension d.
        depth: number of blocks.
        num_heads: number of attention heads, a divisor of `embed_dim`.
        image_size: the size that inputs are meant to have, in input units, checked against the patch now and
            not at the first batch; other sizes work too.
        in_channels: channels of the input, 3.
        mlp_ratio: hidden width of the MLPs over d, 4.
        positions: layout of the sin-cos positions, see `sincos_positions`; by default `"w"`, `"wh"`
            (I-JEPA's) or `"thw"` (V-JEPA's) by the number of axes; `"none"` for no positions.
            `ResizedPositions` interpolate the table of a trained grid. `RotaryPositions` turn the queries and
            keys of every block instead (V-JEPA 2's); `"rope"` is `RotaryPositions()`, and the `config` of either
            is taken too.
        init_std: standard deviation of the initial weights, 0.02 (as released, for widths of 768 and more);
            output projections of block l are divided by sqrt(2 (l + 1)) besides. (The released I-JEPA code
            undoes that division; ours keeps it.) In narrow networks 0.02 starves a masked model's encoder:
            at width 128 its first gradients are 900 times smaller than with 1 / sqrt(embed_dim);
            `FanInStd()` makes each layer's follow from its own fan-in.
        seed: seed of the initial weights.

    Attributes:
        config: the arguments but for `init_std` and `seed`, fit for JSON; `ViT(**vit.config)` rebuilds it.
        embed_dim: d.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    takes_segments = True  # what a learner with several masks asks before it passes all of them at once

    def __init__(
        self,
        *,
        patch_size: int | Sequence[int],
        embed_dim: int,
        depth: int,
        num_heads: int,
        image_size: int | Sequence[int] | None = None,
        in_channels: int = 3,
        mlp_ratio: float = 4.0,
        positions: Positions | Mapping[str, Any] | None = None,
        init_std: float | FanInStd = 0.02,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.patch_size, size = _resolve_axes(patch_size, image_size)
        positions = resolve_positions(positions or _DEFAULT_LAYOUT[len(self.patch_size)])
        self.embed_dim = embed_dim
        self._config: dict[str, Any] = {
            "patch_size": list(self.patch_size),
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "image_size": None if size is None else list(size),
            "in_channels": in_channels,
            "mlp_ratio": mlp_ratio,
            "positions": positions_config(positions),
        }
        self.patch_embed = nn.Linear(in_channels * torch.Size(self.patch_size).numel(), embed_dim)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.positions = position_tables(positions, embed_dim, num_heads)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        if size is not None:
            self.grid(size)
        init_transformer(self, init_std, seed, "vit")
        rescale_depth([block.residual_weights() for block in self.blocks])  # type: ignore[operator]

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> ViT:
        """A network of published dimensions.

        Args:
            name: tiny (d 192, 12 blocks, 3 heads, patch 16), small (384, 12, 6), base (768, 12, 12),
                large (1024, 24, 16), huge (1280, 32, 16, patch 14), giant (1408, 40, 16, MLP 6144), and by the
                names that V-JEPA 2 gives them giant_xformers (1408, 40, 22, MLP 6144) and gigantic_xformers
                (1664, 48, 26, MLP 8192, of V-JEPA 2.1).
            overrides: arguments of `ViT` that replace or join the preset's; the released V-JEPA 2 encoders are
                `patch_size=(2, 16, 16), positions=RotaryPositions(pairing="released")`.

        Raises:
            ValueError: an unknown name.
        """
        if name not in PRESETS:
            nearest = difflib.get_close_matches(name, PRESETS, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
            raise ValueError(f"ViT.preset: no preset {name!r}, there are {', '.join(PRESETS)}{hint}")
        return cls(**(PRESETS[name] | overrides))

    @property
    def config(self) -> dict[str, Any]:
        """The arguments but for `init_std` and `seed`, fit for JSON; the class takes them back."""
        return copy.deepcopy(self._config)

    def grid(self, input_shape: Sequence[int]) -> Grid:
        """The token grid of an input with these spatial axes, in input units.

        Args:
            input_shape: `(L,)`, `(H, W)` or `(T, H, W)`.

        Raises:
            ValueError: the patch does not divide the input.
        """
        return patch_grid(input_shape, self.patch_size)

    def forward(
        self,
        x: Float[Tensor, "b c *axes"],
        ids: Int64[Tensor, "b n"] | None = None,
        return_intermediates: Sequence[int] | None = None,
        segments: Sequence[int] | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Tokens of the inputs.

        Args:
            x: inputs `[b, c, ...]`.
            ids: the tokens to embed and process, int64 `[b, n]`; all of the grid's, row-major, when absent.
            return_intermediates: indices of blocks whose outputs are wanted too, negative ones from the end.
            segments: lengths of the runs that `ids` is made of, n in all, where they are several masks of a sample:
                tokens of one run do not see those of another. One run by default.

        Returns:
            Tokens `[b, n, d]` after the last layer norm; with `return_intermediates` the pair of these and
            `{"block_0": [b, n, d], ...}`, the residual stream after each block asked for.

        Raises:
            ValueError: the patch does not divide the input, there is no such block, or segments that do not add up
                to the ids.
        """
        grid = self.grid(x.shape[2:])
        tokens = self.patch_embed(patchify(x, self.patch_size, ids))
        pattern = attend if segments is None else _pattern(segments, tokens.shape[1])
        if isinstance(self.positions, RotaryTables):
            rotation = self.positions.rotation(grid, ids, tokens)
            return run_blocks(tokens, self.blocks, self.norm, return_intermediates, rotation, pattern)
        table = self.positions(grid, self.patch_embed.weight)
        tokens = tokens + (table if ids is None else table[ids])
        return run_blocks(tokens, self.blocks, self.norm, return_intermediates, pattern=pattern)


def _pattern(segments: Sequence[int], num_tokens: int) -> Pattern:
    if sum(segments) != num_tokens or min(segments) < 1:
        raise ValueError(
            f"ViT: segments must be positive and add up to the {num_tokens} tokens, got {list(segments)}; give the "
            f"length of each mask in ids."
        )
    return partial(attend_within, lengths=tuple(segments))


def _resolve_axes(
    patch_size: int | Sequence[int], image_size: int | Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    if isinstance(patch_size, int):
        num_axes = 2 if image_size is None or isinstance(image_size, int) else len(image_size)
        patch_size = (patch_size,) * num_axes
    patch = tuple(patch_size)
    if not 1 <= len(patch) <= 3 or min(patch) < 1:
        raise ValueError(f"ViT: patch_size must be one to three positive integers, got {patch_size!r}.")
    if image_size is None:
        return patch, None
    if isinstance(image_size, int):
        if len(patch) == 3:
            raise ValueError(f"ViT: image_size of a video network must be (T, H, W), got {image_size}.")
        return patch, (image_size,) * len(patch)
    return patch, tuple(image_size)

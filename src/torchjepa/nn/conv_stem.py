"""A ViT for images whose patches are embedded by overlapping convolutions, fit for masked models."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from torchjepa import rng
from torchjepa.nn.attention import Block
from torchjepa.nn.init import FanInStd, fill_normal, init_transformer, rescale_depth
from torchjepa.nn.intermediates import run_blocks
from torchjepa.nn.patch import patch_grid
from torchjepa.nn.positions import SinCosPositions
from torchjepa.types import Grid


class ConvStemViT(nn.Module):
    """A vision transformer whose patch embedding is a stack of 3 x 3 convolutions of stride 2.

    tokens = norm(blocks(stem(x * visible) + positions)), stem = conv_L gelu(conv_{L-1} ... gelu(conv_1 x)),
    L = log2(patch_size): as many tokens as a ViT of that patch, each of which looks 2^L - 1 pixels beyond the
    top and left edges of its patch. One linear map of a patch tells poorly what is drawn on it; a few
    convolutions do, and train more stably (Xiao et al. 2021, "Early convolutions help transformers see
    better").

    With `ids` the pixels of all other patches are set to zero before the first convolution, so that a visible
    token depends on visible pixels alone and nothing leaks in a masked model. Zero is the mean colour of
    inputs that are normalised by the statistics of their data. The stem runs over the whole picture even
    then, in channels-last layout.

    Args:
        patch_size: side of a patch in pixels, a power of two, at least 2.
        embed_dim: embedding dimension d.
        depth: number of blocks.
        num_heads: number of attention heads, a divisor of `embed_dim`.
        image_size: the size that images are meant to have, in pixels, an integer or (H, W), checked against
            the patch now and not at the first batch; other sizes work too.
        in_channels: channels of the input, 3.
        mlp_ratio: hidden width of the MLPs over d, 4.
        stem_width: channels of the first convolution, 32; each later one has twice as many, d at most, and
            the last has d.
        positions: layout of the sin-cos positions, `"wh"` by default, or `"none"`; see `sincos_positions`.
        init_std: standard deviation of the initial weights of the blocks, 0.02; see `ViT`. Convolutions have
            He's sqrt(2 / fan_in).
        seed: seed of the initial weights.

    Attributes:
        config: the arguments but for `init_std` and `seed`, fit for JSON; `ConvStemViT(**config)` rebuilds it.
        embed_dim: d.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    def __init__(
        self,
        *,
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        image_size: int | Sequence[int] | None = None,
        in_channels: int = 3,
        mlp_ratio: float = 4.0,
        stem_width: int = 32,
        positions: str = "wh",
        init_std: float | FanInStd = 0.02,
        seed: int = 0,
    ) -> None:
        super().__init__()
        widths = _stem_widths(patch_size, stem_width, embed_dim)
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self._config: dict[str, Any] = {
            "patch_size": patch_size,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "image_size": None if size is None else list(size),
            "in_channels": in_channels,
            "mlp_ratio": mlp_ratio,
            "stem_width": stem_width,
            "positions": positions,
        }
        self.stem = _stem(in_channels, widths)
        self.positions = SinCosPositions(embed_dim, positions)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        if size is not None:
            self.grid(size)
        init_transformer(self, init_std, seed, "vit")
        rescale_depth([block.residual_weights() for block in self.blocks])  # type: ignore[operator]
        _init_stem(self.stem, seed)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments but for `init_std` and `seed`, fit for JSON; the class takes them back."""
        return copy.deepcopy(self._config)

    def grid(self, input_shape: Sequence[int]) -> Grid:
        """The token grid of an image with these spatial axes, in pixels.

        Args:
            input_shape: `(H, W)`.

        Raises:
            ValueError: other than two axes, or the patch does not divide one.
        """
        return patch_grid(input_shape, (self.patch_size, self.patch_size))

    def forward(
        self,
        x: Float[Tensor, "b c *axes"],
        ids: Int64[Tensor, "b n"] | None = None,
        return_intermediates: Sequence[int] | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Tokens of the images.

        Args:
            x: images `[b, c, H, W]`.
            ids: the visible patches, int64 `[b, n]`, the only ones that are looked at and processed; all of
                the grid's, row-major, when absent.
            return_intermediates: indices of blocks whose outputs are wanted too, negative ones from the end.

        Returns:
            Tokens `[b, n, d]` after the last layer norm; with `return_intermediates` the pair of these and
            `{"block_0": [b, n, d], ...}`, the residual stream after each block asked for.

        Raises:
            ValueError: the patch does not divide the image, or there is no such block.
        """
        grid = self.grid(x.shape[2:])
        if ids is not None:
            x = self._hide_others(x, ids, grid)
        features = self.stem(x.contiguous(memory_format=torch.channels_last))
        tokens = features.permute(0, 2, 3, 1).flatten(1, 2)
        tokens = tokens + self.positions(grid, self.norm.weight)
        if ids is not None:
            tokens = tokens[torch.arange(len(x), device=x.device)[:, None], ids]
        return run_blocks(tokens, self.blocks, self.norm, return_intermediates)

    def _hide_others(self, x: Tensor, ids: Tensor, grid: Grid) -> Tensor:
        visible = torch.zeros(len(x), grid.num_tokens, dtype=torch.bool, device=x.device)
        visible = visible.scatter(1, ids, True).view(-1, 1, grid.h, 1, grid.w, 1)
        visible = visible.expand(-1, -1, -1, self.patch_size, -1, self.patch_size)
        # A choice and not a product: what is hidden may be anything, NaN included.
        return torch.where(visible.reshape(len(x), 1, *x.shape[2:]), x, 0.0)


def _stem_widths(patch_size: int, stem_width: int, embed_dim: int) -> list[int]:
    if patch_size < 2 or patch_size & (patch_size - 1):
        raise ValueError(
            f"ConvStemViT: patch_size must be a power of two, at least 2, got {patch_size!r}: each "
            f"convolution of the stem halves height and width; use ViT for other patches."
        )
    if stem_width < 1:
        raise ValueError(f"ConvStemViT: stem_width must be at least 1, got {stem_width}.")
    num_layers = int(math.log2(patch_size))
    return [min(embed_dim, stem_width * 2**layer) for layer in range(num_layers - 1)] + [embed_dim]


def _stem(in_channels: int, widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for in_width, width in zip([in_channels, *widths[:-1]], widths):
        layers += [nn.Conv2d(in_width, width, kernel_size=3, stride=2, padding=1), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def _init_stem(stem: nn.Sequential, seed: int) -> None:
    # He's normal by fan_in: without norms between the layers it is the forward pass that must keep its scale.
    generator = rng.generator(seed, "init", "conv stem")
    for layer in stem:
        if isinstance(layer, nn.Conv2d):
            fill_normal(layer.weight, math.sqrt(2.0 / layer.weight[0].numel()), generator)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

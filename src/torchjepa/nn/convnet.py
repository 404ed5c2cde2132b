"""A small convolutional encoder: what a laptop trains in minutes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from torchjepa.nn.batchnorm import GlobalBatchNorm2d
from torchjepa.nn.init import init_relu_network
from torchjepa.nn.intermediates import resolve_indices
from torchjepa.types import Grid


class ConvEncoder(nn.Module):
    """A residual network whose tokens are the places of its last feature map.

    Stage i is a 3 x 3 convolution of stride `strides[i]` to `widths[i]` channels, batch norm and ReLU, then
    `depths[i]` residual blocks y = relu(x + norm(conv(relu(norm(conv(x)))))) of that width, each starting as
    the identity. Batch norms take the statistics of all processes. Runs in channels-last layout.

    Args:
        in_channels: channels of the input, 3.
        widths: channels of each stage; the last is the embedding dimension d.
        depths: residual blocks of each stage; when absent none in the first, where one costs as much as all
            others together, and one in each later stage.
        strides: how much each stage shrinks height and width; when absent 1 in the first and 2 in each later
            stage, so that 32 x 32 inputs and four stages give 4 x 4 tokens.
        seed: seed of the initial weights (He's normal).

    Attributes:
        config: the arguments but for the seed, fit for JSON; `ConvEncoder(**encoder.config)` builds it again.
        embed_dim: d.

    Raises:
        ValueError: no stage, or `depths` or `strides` of another length than `widths`.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        widths: Sequence[int] = (32, 64, 128, 256),
        depths: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        later = len(widths) - 1
        depths = [0] + [1] * later if depths is None else list(depths)
        self.strides = (1,) + (2,) * later if strides is None else tuple(strides)
        if not widths or len(depths) != len(widths) or len(self.strides) != len(widths):
            raise ValueError(
                f"ConvEncoder: widths, depths and strides must have one entry for each stage, got "
                f"{tuple(widths)}, {tuple(depths)} and {self.strides}."
            )
        self.embed_dim = widths[-1]
        self._config: dict[str, Any] = {
            "in_channels": in_channels,
            "widths": list(widths),
            "depths": depths,
            "strides": list(self.strides),
        }
        inputs = [in_channels, *widths[:-1]]
        self.stages = nn.Sequential(*map(_stage, inputs, widths, depths, self.strides))
        init_relu_network(self, seed, "convnet")

    @property
    def config(self) -> dict[str, Any]:
        """The arguments but for the seed, fit for JSON; the class called with them builds it again."""
        return copy.deepcopy(self._config)

    def grid(self, input_shape: Sequence[int]) -> Grid:
        """The token grid of an input with these spatial axes: each is divided by the strides, rounded up.

        Args:
            input_shape: `(H, W)` in pixels.

        Raises:
            ValueError: other than two axes.
        """
        if len(input_shape) != 2:
            raise ValueError(
                f"ConvEncoder: inputs must be images [b, c, H, W], got spatial axes {tuple(input_shape)}; "
                f"use ViT for sequences and videos."
            )
        h, w = input_shape
        for stride in self.strides:
            h, w = -(-h // stride), -(-w // stride)
        return Grid(h=h, w=w)

    def forward(
        self,
        x: Float[Tensor, "b c *axes"],
        ids: Tensor | None = None,
        return_intermediates: Sequence[int] | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Tokens of the last feature map, row-major.

        Args:
            x: images `[b, c, H, W]`.
            ids: must be absent.
            return_intermediates: indices of stages whose outputs are wanted too, negative ones from the end.

        Returns:
            `[b, h * w, d]`; with `return_intermediates` the pair of these and `{"stage_0": [b, h * w, c]}`
            and so on, the places of each stage asked for.

        Raises:
            ValueError: `ids` is given, the inputs are not images, or there is no such stage.
        """
        if ids is not None:
            raise ValueError(
                "ConvEncoder: ids must be None: a convolution mixes neighbours, so hidden patches would leak "
                "into the visible ones; use ViT as the encoder of a masked model."
            )
        self.grid(x.shape[2:])
        wanted = resolve_indices("stages", return_intermediates or (), len(self.stages))
        features = x.contiguous(memory_format=torch.channels_last)
        intermediates = {}
        for index, stage in enumerate(self.stages):
            features = stage(features)
            if index in wanted:
                intermediates[f"stage_{index}"] = _places(features)
        tokens = _places(features)
        return tokens if return_intermediates is None else (tokens, intermediates)


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _conv(width, width, 1)
        self.norm1 = GlobalBatchNorm2d(width)
        self.conv2 = _conv(width, width, 1)
        self.norm2 = GlobalBatchNorm2d(width)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(x + self.norm2(self.conv2(y)), inplace=True)


def _places(features: Tensor) -> Tensor:
    return features.permute(0, 2, 3, 1).flatten(1, 2)


def _stage(in_width: int, width: int, depth: int, stride: int) -> nn.Sequential:
    entry = (_conv(in_width, width, stride), GlobalBatchNorm2d(width), nn.ReLU(inplace=True))
    return nn.Sequential(*entry, *(_ResidualBlock(width) for _ in range(depth)))


def _conv(in_width: int, width: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_width, width, kernel_size=3, stride=stride, padding=1, bias=False)

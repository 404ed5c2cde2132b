"""Initial weights, drawn from the keyed randomness and not from global state: one seed, one network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchjepa import rng


@dataclass(frozen=True)
class FanInStd:
    """A standard deviation for each linear layer by its number of inputs, std = gain / sqrt(fan_in).

    Small networks need it: the published 0.02 is made for widths of 768 and more (gain 0.55 there) and leaves
    the layers of narrow ones close to zero.

    Args:
        gain: the spread of a layer's outputs over that of its inputs, 0.5 (about 0.02 at width 768).

    Raises:
        ValueError: the gain is not positive.
    """

    gain: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.gain < math.inf:
            raise ValueError(f"FanInStd: gain must be positive and finite, got {self.gain!r}.")

    def __call__(self, fan_in: int) -> float:
        """The standard deviation of a layer of `fan_in` inputs."""
        return self.gain / math.sqrt(fan_in)


def init_transformer(module: nn.Module, std: float | FanInStd, seed: int, purpose: str) -> None:
    """Every linear weight from a centred normal, biases zero, layer norms the identity.

    The published rule is std 0.02 truncated at +-2, a hundred standard deviations, which is no truncation.

    Args:
        module: the network, changed in place.
        std: standard deviation of the weights, one for all or by the inputs of each layer.
        seed: seed of the draws.
        purpose: names the network, so that an encoder and a predictor of one seed are unrelated.
    """
    generator = rng.generator(seed, "init", purpose)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            spread = std(layer.in_features) if isinstance(std, FanInStd) else std
            fill_normal(layer.weight, spread, generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@torch.no_grad()
def rescale_depth(residual_weights: Sequence[Sequence[Tensor]]) -> None:
    """Divide the weights that write into the residual stream by sqrt(2 (layer + 1)), layers counted from 0.

    Keeps the stream's variance from growing with depth (BEiT, section 2.5). In the released I-JEPA and
    V-JEPA 1 code a second initialisation silently undoes this; here it stays active, as in V-JEPA 2.

    Args:
        residual_weights: for each layer its output projections, of attention and of the MLP.
    """
    for layer, weights in enumerate(residual_weights):
        for weight in weights:
            weight.div_(math.sqrt(2.0 * (layer + 1)))


def init_relu_network(module: nn.Module, seed: int, purpose: str) -> None:
    """He's normal for convolutions, 1 / sqrt(fan_in) uniform for linear layers: for ReLU and batch norm.

    Convolutions: std = sqrt(2 / fan_out) (He et al. 2015, as in torchvision's ResNet). Linear layers: torch's
    own default, which the released VICReg and Barlow Twins projectors have. Batch norms stay as they are.

    Args:
        module: the network, changed in place.
        seed: seed of the draws.
        purpose: names the network, so that an encoder and a projector of one seed are unrelated.
    """
    generator = rng.generator(seed, "init", purpose)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
            fill_normal(layer.weight, math.sqrt(2.0 / fan_out), generator)
        elif isinstance(layer, nn.Linear):
            _fill_uniform(layer.weight, 1.0 / math.sqrt(layer.in_features), generator)


def fill_normal(tensor: Tensor, std: float, generator: torch.Generator) -> None:
    """Fill a parameter from a centred normal.

    Args:
        tensor: the parameter, changed in place.
        std: standard deviation.
        generator: a CPU generator.
    """
    _fill(tensor, lambda draw: draw.normal_(0.0, std, generator=generator))


def _fill_uniform(tensor: Tensor, bound: float, generator: torch.Generator) -> None:
    _fill(tensor, lambda draw: draw.uniform_(-bound, bound, generator=generator))


@torch.no_grad()
def _fill(tensor: Tensor, draw: Callable[[Tensor], Tensor]) -> None:
    # Drawn on the CPU in float32 whatever the parameter is: one seed gives one network on every device.
    if not tensor.is_meta:
        tensor.copy_(draw(torch.empty(tensor.shape, dtype=torch.float32, device="cpu")))

"""The expander between an encoder and a joint-embedding loss."""

from __future__ import annotations

import copy
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from torchjepa.nn.batchnorm import GlobalBatchNorm1d
from torchjepa.nn.init import init_relu_network


class Projector(nn.Sequential):
    """An MLP with global batch norm, W_L relu(norm(W_{L-1} ... relu(norm(W_1 x)))), no biases.

    The last layer is linear (VICReg and Barlow Twins, three layers of 8192 for a ResNet-50).

    Args:
        in_dim: dimension of the pooled features.
        hidden_dim: width of the hidden layers.
        out_dim: dimension of the embedding that the regularizer sees.
        num_layers: number of linear layers, 3 (both papers).
        seed: seed of the initial weights (uniform within 1 / sqrt(fan_in), torch's default).

    Attributes:
        config: the arguments but for the seed, fit for JSON.

    Raises:
        ValueError: fewer than one layer.
    """

    def __init__(
        self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int = 3, *, seed: int = 0
    ) -> None:
        if num_layers < 1:
            raise ValueError(f"Projector: num_layers must be at least 1, got {num_layers}.")
        layers: list[nn.Module] = []
        dim = in_dim
        for _ in range(num_layers - 1):
            layers += [
                nn.Linear(dim, hidden_dim, bias=False),
                GlobalBatchNorm1d(hidden_dim),
                nn.ReLU(inplace=True),
            ]
            dim = hidden_dim
        super().__init__(*layers, nn.Linear(dim, out_dim, bias=False))
        self._config: dict[str, Any] = {
            "in_dim": in_dim,
            "hidden_dim": hidden_dim,
            "out_dim": out_dim,
            "num_layers": num_layers,
        }
        init_relu_network(self, seed, "projector")

    @property
    def config(self) -> dict[str, Any]:
        """The arguments but for the seed, fit for JSON; the class called with them builds it again."""
        return copy.deepcopy(self._config)

    def forward(self, input: Float[Tensor, "b d_in"]) -> Float[Tensor, "b d_out"]:
        """Embed pooled features `[b, in_dim]` as `[b, out_dim]`."""
        return super().forward(input)

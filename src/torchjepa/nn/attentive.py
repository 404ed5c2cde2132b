"""The attentive probe of V-JEPA 2: learned queries that gather what a frozen encoder's tokens hold."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchjepa import rng
from torchjepa.nn.attention import Block, attend, check_heads
from torchjepa.nn.init import FanInStd, fill_normal, init_transformer, rescale_depth
from torchjepa.nn.residual import MLP, norm_mlp_add


class CrossBlock(nn.Module):
    """Queries gather tokens: x <- x + softmax(Q K^T / sqrt(e)) V of norm(tokens), then x <- x + mlp(norm(x)).

    What is gathered is added as it is: there is no output projection, and the queries are not normalised.

    Args:
        dim: embedding dimension d.
        num_heads: number of heads, a divisor of d.
        mlp_ratio: hidden width of the MLP over d.
        norm_eps: epsilon of the layer norms.

    Raises:
        ValueError: the heads do not divide the dimension.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, norm_eps: float) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(dim, round(dim * mlp_ratio))

    def forward(
        self, queries: Float[Tensor, "1 q d"], tokens: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b q d"]:
        """What the queries, the same for all samples, make of each sample's tokens."""
        heads = self.num_heads, -1
        q = self.q(queries).unflatten(-1, heads).transpose(1, 2).expand(len(tokens), -1, -1, -1)
        k, v = self.kv(self.norm1(tokens)).unflatten(-1, (2, *heads)).unbind(2)
        gathered = attend(q, k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2).flatten(2)
        return norm_mlp_add(queries + gathered, self.norm2, self.mlp)


class AttentivePooler(nn.Module):
    """Learned queries gather the tokens of a sample (V-JEPA 2's probe without its last layer).

    `depth - 1` transformer blocks over all tokens, then one block in which the queries attend to them. None has
    positions: those are in the tokens.

    Args:
        embed_dim: embedding dimension d of the tokens.
        num_heads: number of attention heads of all blocks, a divisor of d, 16 (V-JEPA 2).
        depth: number of blocks, the queries' own included, 4 (V-JEPA 2; 1 in V-JEPA).
        num_queries: number of learned queries, 1 (3 for verb, noun and action of EPIC-Kitchens).
        mlp_ratio: hidden width of the MLPs over d, 4.
        norm_eps: epsilon of the layer norms, 1e-5 in the released probes; 1e-6 in transformers' conversion.
        init_std: standard deviation of the initial weights and queries, 0.02; see `ViT`.
        seed: seed of the initial weights.

    Attributes:
        config: the arguments but for `init_std` and `seed`, fit for JSON.
        embed_dim: d.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int = 16,
        depth: int = 4,
        num_queries: int = 1,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-5,
        init_std: float | FanInStd = 0.02,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, count in {"depth": depth, "num_queries": num_queries}.items():
            if count < 1:
                raise ValueError(f"AttentivePooler: {name} must be at least 1, got {count}.")
        self.embed_dim = embed_dim
        self._config: dict[str, Any] = {
            "embed_dim": embed_dim,
            "num_heads": num_heads,
            "depth": depth,
            "num_queries": num_queries,
            "mlp_ratio": mlp_ratio,
            "norm_eps": norm_eps,
        }
        self.queries = nn.Parameter(torch.zeros(1, num_queries, embed_dim))
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, norm_eps) for _ in range(depth - 1)
        )
        self.cross = CrossBlock(embed_dim, num_heads, mlp_ratio, norm_eps)
        init_transformer(self, init_std, seed, "attentive pooler")
        rescale_depth([block.residual_weights() for block in self.blocks])  # type: ignore[operator]
        rescale_depth([[self.cross.mlp.fc2.weight]])
        query_std = 0.02 if isinstance(init_std, FanInStd) else init_std
        fill_normal(self.queries, query_std, rng.generator(seed, "init", "attentive queries"))

    @property
    def config(self) -> dict[str, Any]:
        """The arguments but for `init_std` and `seed`, fit for JSON; the class takes them back."""
        return copy.deepcopy(self._config)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b q d"]:
        """Gather tokens `[b, n, d]` to one vector for each query, `[b, num_queries, d]`."""
        for block in self.blocks:
            tokens = block(tokens)
        return self.cross(self.queries, tokens)


class AttentiveClassifier(nn.Module):
    """The attentive probe of V-JEPA 2: logits = W pool(tokens) + b with an `AttentivePooler` of one query.

    Args:
        embed_dim: embedding dimension d of the tokens.
        num_classes: number of classes.
        num_heads: number of attention heads, a divisor of d, 16 (V-JEPA 2).
        depth: number of blocks, the query's own included, 4 (V-JEPA 2; 1 in V-JEPA).
        mlp_ratio: hidden width of the MLPs over d, 4.
        norm_eps: epsilon of the layer norms, 1e-5; see `AttentivePooler`.
        init_std: standard deviation of the initial weights, 0.02; see `ViT`.
        seed: seed of the initial weights.

    Attributes:
        config: the arguments but for `init_std` and `seed`, fit for JSON.
        embed_dim: d.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_classes: int,
        num_heads: int = 16,
        depth: int = 4,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-5,
        init_std: float | FanInStd = 0.02,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"AttentiveClassifier: num_classes must be at least 1, got {num_classes}.")
        self.embed_dim = embed_dim
        self.pooler = AttentivePooler(
            embed_dim=embed_dim,
            num_heads=num_heads,
            depth=depth,
            mlp_ratio=mlp_ratio,
            norm_eps=norm_eps,
            init_std=init_std,
            seed=seed,
        )
        self.linear = nn.Linear(embed_dim, num_classes)
        init_transformer(self.linear, init_std, seed, "attentive classifier")

    @property
    def config(self) -> dict[str, Any]:
        """The arguments but for `init_std` and `seed`, fit for JSON; the class takes them back."""
        pooler = {name: value for name, value in self.pooler.config.items() if name != "num_queries"}
        return pooler | {"num_classes": self.linear.out_features}

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b classes"]:
        """Logits `[b, num_classes]` of tokens `[b, n, d]`."""
        return self.linear(self.pooler(tokens).squeeze(1))

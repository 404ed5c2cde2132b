"""Two augmented views embedded alike: what VICReg and Barlow Twins were made for. No masks, no EMA."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchjepa.collapse import CollapseRegularizer, named_terms
from torchjepa.models.encoding import evaluation_mode
from torchjepa.nn.pooling import MeanPool
from torchjepa.types import Batch, Encoder, Loss

_DEFAULT_POOL = MeanPool()


class JointEmbedding(nn.Module):
    """A joint embedding of two views, L = regularizer(projector(pool(f(x_a))), projector(pool(f(x_b)))).

    The two views pass one after the other, so that batch norms standardise each by its own statistics (as in
    the released VICReg and Barlow Twins code), over all processes with the norms of `torchjepa.nn`.

    Args:
        encoder: f, any encoder with the ViT's call.
        projector: pooled features `[b, d']` to embeddings `[b, e]`; thrown away after training.
        regularizer: the whole loss on the two embeddings, `VICReg()` say.
        pool: tokens `[b, n, d]` to `[b, d']`, the mean by default.

    Raises:
        ValueError: the encoder is not an `nn.Module`.
    """

    def __init__(
        self,
        encoder: Encoder,
        projector: nn.Module,
        *,
        regularizer: CollapseRegularizer,
        pool: Callable[[Tensor], Tensor] = _DEFAULT_POOL,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise ValueError(f"JointEmbedding: encoder must be an nn.Module, got {type(encoder).__name__}.")
        self.encoder = encoder
        self.projector = projector
        self.regularizer = regularizer
        self.pool = pool

    @property
    def deployable_encoder(self) -> nn.Module:
        """The network that is judged and shipped: the encoder without the projector."""
        return self.encoder

    def loss(self, batch: Batch, step: int) -> Loss:
        """The loss of a batch.

        Args:
            batch: two views of each sample, `[b, c, ...]`.
            step: the optimizer update, from 0; nothing here depends on it.

        Returns:
            The total; the regularizer's terms, which add up to it; feature `encoder` `[b, d']`, the pooled
            tokens of the first view.

        Raises:
            ValueError: the batch has another number of views.
        """
        if len(batch.views) != 2:
            raise ValueError(
                f"JointEmbedding: a batch must have two views of each sample, got {len(batch.views)}; use a "
                f"transform that makes two, TwoViewTransform say."
            )
        pooled_a, pooled_b = (self.pool(self.encoder(view)) for view in batch.views)
        parts = self.regularizer.compute(self.projector(pooled_a), self.projector(pooled_b))
        return Loss(parts.total(), named_terms(parts), {"encoder": pooled_a.detach()})

    def after_step(self, step: int) -> None:
        """Nothing moves but by gradient.

        Args:
            step: the optimizer update that was made, from 0.
        """

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "b c *axes"]) -> Float[Tensor, "b n d"]:
        """Tokens of the encoder in evaluation mode, without gradient.

        Args:
            x: inputs `[b, c, ...]`.
        """
        with evaluation_mode(self.encoder):
            return self.encoder(x)

    def scheduled(self, step: int) -> Mapping[str, float]:
        """Nothing is scheduled.

        Args:
            step: the optimizer update, from 0.
        """
        return {}

"""Augmented views embedded alike: what VICReg, Barlow Twins and LeJEPA are made for. No masks, no EMA."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchjepa.collapse import CollapseRegularizer, named_terms
from torchjepa.models.encoding import add_losses, evaluation_mode
from torchjepa.nn.pooling import MeanPool
from torchjepa.types import Batch, Embedded, Encoder, Loss

_DEFAULT_POOL = MeanPool()


class JointEmbedding(nn.Module):
    """A joint embedding of v views, L = regularizer(z_1, ..., z_v) with z_i = projector(pool(f(x_i))).

    The views pass one after the other, so that batch norms standardise each by its own statistics (as in the
    released VICReg and Barlow Twins code), over all processes with the norms of `torchjepa.nn`.

    A batch that is accumulated over micro-batches is joined before the projector: regularizer and projector
    (its batch norms too) see all of it, batch norms inside the encoder one micro-batch at a time.

    Args:
        encoder: f, any encoder with the ViT's call.
        projector: pooled features `[b, d']` to embeddings `[b, e]`; thrown away after training.
        regularizer: the whole loss on the embeddings, `VICReg()` say; it decides how many views there are.
        pool: tokens `[b, n, d]` to `[b, d']`, the mean by default.
        joint_views: pass views of equal size through the encoder as one batch, and all views through the
            projector as one batch (LeJEPA's released code); batch norms then standardise them together.

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
        joint_views: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise ValueError(f"JointEmbedding: encoder must be an nn.Module, got {type(encoder).__name__}.")
        self.encoder = encoder
        self.projector = projector
        self.regularizer = regularizer
        self.pool = pool
        self.joint_views = joint_views

    @property
    def deployable_encoder(self) -> nn.Module:
        """The network that is judged and shipped: the encoder without the projector."""
        return self.encoder

    def loss(self, batch: Batch, step: int) -> Loss:
        """The loss of a batch, `joint_loss` of what `embed` gives.

        Args:
            batch: views of each sample, `[b, c, ...]`, of any sizes; as many as the regularizer takes.
            step: the optimizer update, from 0; nothing here depends on it.

        Returns:
            The total; the regularizer's terms, which add up to it; features of the first view: `encoder`
            `[b, d']` (pooled tokens), `projector` `[b, e]` and `tokens` `[b, n, d]`.

        Raises:
            ValueError: the regularizer takes another number of views.
        """
        embedded = self.embed(batch, step)
        return add_losses(embedded.local, self.joint_loss(embedded.embeddings, step))

    def embed(self, batch: Batch, step: int) -> Embedded:
        """The pooled features `[b, d']` of every view; no loss but the feature `tokens` of the first.

        Args:
            batch: views of each sample, `[b, c, ...]`.
            step: the optimizer update, from 0; nothing here depends on it.
        """
        tokens = self._encode_views(batch.views)
        pooled = tuple(self.pool(each) for each in tokens)
        nothing = Loss(pooled[0].new_zeros(()), {}, {"tokens": tokens[0].detach()})
        return Embedded(pooled, nothing)

    def joint_loss(self, embeddings: tuple[Float[Tensor, "b d_in"], ...], step: int) -> Loss:
        """The regularizer's loss of projected features.

        Args:
            embeddings: pooled features of every view, each `[b, d']`.
            step: the optimizer update, from 0; nothing here depends on it.

        Raises:
            ValueError: the regularizer takes another number of views.
        """
        projected = self._project_views(embeddings)
        parts = self.regularizer.compute(*projected)
        features = {"encoder": embeddings[0].detach(), "projector": projected[0].detach()}
        return Loss(parts.total(), named_terms(parts), features)

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

    def _encode_views(self, views: Sequence[Tensor]) -> list[Tensor]:
        if not views:
            raise ValueError("JointEmbedding: a batch must have at least one view of each sample, got none.")
        if not self.joint_views:
            return [self.encoder(view) for view in views]
        tokens: dict[int, Tensor] = {}
        for shape in dict.fromkeys(view.shape for view in views):
            places = [place for place, view in enumerate(views) if view.shape == shape]
            joined = self.encoder(torch.cat([views[place] for place in places]))
            tokens |= zip(places, joined.split(shape[0]))
        return [tokens[place] for place in range(len(views))]

    def _project_views(self, pooled: Sequence[Tensor]) -> list[Tensor]:
        if not self.joint_views:
            return [self.projector(each) for each in pooled]
        return list(self.projector(torch.cat(list(pooled))).split([len(each) for each in pooled]))

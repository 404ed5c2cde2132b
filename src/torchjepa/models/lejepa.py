"""LeJEPA: views embedded alike, embeddings kept Gaussian, and nothing else (Balestriero and LeCun 2025)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from torchjepa import collapse
from torchjepa.collapse import CollapseRegularizer
from torchjepa.models.joint_embedding import JointEmbedding
from torchjepa.nn.pooling import MeanPool
from torchjepa.types import Encoder

_DEFAULT_POOL = MeanPool()


class LeJEPA(JointEmbedding):
    """LeJEPA (arXiv 2511.08544): L = (1 - lambda) mean_v |z_v - c|^2 / e + lambda mean_v SIGReg(z_v).

    z_v = projector(pool(encoder(x_v))) of each view, e its dimension, c the mean of the global views, which
    come first (`MultiCropTransform` makes such batches). Every view is trained: no EMA, no stop-gradient, no
    predictor. Views of one size pass through the encoder as one batch, and all through the projector, as in
    the authors' code.

    If the encoder ends in a layer norm, as the ViT does, the projector must have a batch norm (`Projector`
    has): SIGReg could not move the scale of single dimensions otherwise.

    Args:
        encoder: any with the ViT's call. Local views are smaller than global ones: a ViT serves every size that
            its patch divides, with the sin-cos positions of the smaller grid.
        projector: pooled features `[b, d']` to embeddings `[b, e]`, thrown away after training; the authors use
            three layers, 2048 wide, with batch norm, and e of 16 to 512: `Projector(d', 2048, e)`.
        regularizer: the whole loss on the embeddings; `None` is `collapse.LeJEPA()`, lambda 0.05 on two global
            views and any number of local ones.
        pool: tokens `[b, n, d]` to `[b, d']`, the mean by default (the authors' ViT gives its class token).

    Raises:
        ValueError: the encoder is not an `nn.Module`.
    """

    def __init__(
        self,
        encoder: Encoder,
        projector: nn.Module,
        *,
        regularizer: CollapseRegularizer | None = None,
        pool: Callable[[Tensor], Tensor] = _DEFAULT_POOL,
    ) -> None:
        # Not a default argument: SIGReg counts its calls, which models must not share.
        loss = collapse.LeJEPA() if regularizer is None else regularizer
        super().__init__(encoder, projector, regularizer=loss, pool=pool, joint_views=True)

"""The family of masked recipes: I-JEPA with any sizes, masks, energy and regularizer."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from torchjepa.collapse import CollapseRegularizer
from torchjepa.data import MaskedViewTransform, Preprocessing
from torchjepa.ema import EMA, LinearMomentumSchedule
from torchjepa.energy import EnergyFn, SmoothL1Energy
from torchjepa.masking import MultiBlockMasking
from torchjepa.models import IJEPA
from torchjepa.nn import Predictor, ViT
from torchjepa.recipes.base import Recipe
from torchjepa.types import MaskSampler


@dataclass(frozen=True, kw_only=True)
class IJEPARecipe(Recipe):
    """I-JEPA (Assran et al. 2023): predict the target encoder's tokens of masked blocks from the visible ones."""

    patch_size: int = 16
    """Side of a patch in pixels."""
    embed_dim: int = 192
    """Width of the encoder."""
    depth: int = 12
    """Number of the encoder's blocks."""
    num_heads: int = 3
    """Attention heads of the encoder."""
    predictor_dim: int = 96
    """Width of the predictor. I-JEPA uses 384 whatever the encoder, which is most of the work for a small one."""
    predictor_depth: int = 6
    """Number of the predictor's blocks."""
    predictor_heads: int = 3
    """Attention heads of the predictor."""
    mask: MaskSampler = field(default_factory=MultiBlockMasking)
    """What is seen and what is to be predicted."""
    energy: EnergyFn = field(default_factory=SmoothL1Energy)
    """Distance between predicted and actual target tokens."""
    momentum: float = 0.996
    """EMA momentum of the target encoder at the first step."""
    final_momentum: float = 1.0
    """EMA momentum at the last step, reached linearly."""
    regularizer: CollapseRegularizer | None = None
    """Collapse regularizer on the pooled context tokens; None trains plain I-JEPA."""
    regularizer_weight: float = 1.0
    """Its weight beside the prediction energy."""
    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Area of the random crop as a share of the image."""
    flip: float = 0.0
    """Probability of a horizontal flip; the released I-JEPA has none."""
    pool: str = "mean"
    """How tokens are pooled when the encoder is judged: mean or mean_max."""

    @property
    def pool_name(self) -> str:
        """How tokens become one feature vector when the encoder is judged."""
        return self.pool

    def build_encoder(self, num_channels: int) -> ViT:
        """The context encoder; the target encoder starts as its copy."""
        return ViT(
            image_size=self.image_size,
            patch_size=self.patch_size,
            in_channels=num_channels,
            embed_dim=self.embed_dim,
            depth=self.depth,
            num_heads=self.num_heads,
            seed=self.seed,
        )

    def build_learner(self, num_channels: int, total_steps: int) -> nn.Module:
        """I-JEPA with this recipe's parts."""
        momentum = LinearMomentumSchedule(
            base_momentum=self.momentum, final_momentum=self.final_momentum, total_steps=total_steps
        )
        return IJEPA(
            self.build_encoder(num_channels),
            Predictor(
                encoder_dim=self.embed_dim,
                embed_dim=self.predictor_dim,
                depth=self.predictor_depth,
                num_heads=self.predictor_heads,
                seed=self.seed,
            ),
            mask=self.mask,
            energy=self.energy,
            ema=EMA(self.momentum, momentum),
            regularizer=self.regularizer,
            regularizer_weight=self.regularizer_weight,
            seed=self.seed,
        )

    def build_transform(self, preprocessing: Preprocessing) -> MaskedViewTransform:
        """One random crop."""
        return MaskedViewTransform(preprocessing, scale=self.crop_scale, flip_probability=self.flip)

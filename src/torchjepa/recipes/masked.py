"""The family of masked recipes: what all have, and I-JEPA with any sizes, masks, energy and regularizer."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from torchjepa.collapse import CollapseRegularizer
from torchjepa.data import MaskedViewTransform, Preprocessing
from torchjepa.ema import EMA, LinearMomentumSchedule
from torchjepa.energy import EnergyFn, SmoothL1Energy
from torchjepa.masking import MultiBlockMasking
from torchjepa.models import IJEPA, LayerNormTargets, TargetNorm
from torchjepa.nn import ConvStemViT, FanInStd, Predictor, Projector, SharedContextPredictor, ViT
from torchjepa.nn.pooling import MeanMaxPool, MeanPool, pool_by_name
from torchjepa.recipes.base import Recipe
from torchjepa.types import MaskSampler


@dataclass(frozen=True, kw_only=True)
class MaskedRecipe(Recipe):
    """A masked learner: predict the target encoder's tokens of hidden places from the visible ones."""

    patch_size: int = 16
    """Side of a patch in pixels."""
    init_gain: float | None = None
    """Initial weights have standard deviation init_gain / sqrt(inputs of the layer), 0.5 say for a narrow
    network. Default: 0.02 throughout, as released."""
    embed_dim: int = 192
    """Width of the encoder."""
    depth: int = 12
    """Number of the encoder's blocks."""
    num_heads: int = 3
    """Attention heads of the encoder."""
    predictor_dim: int = 96
    """Width of the predictor. The released models use 384 whatever the encoder, which is most of the work for a
    small one."""
    predictor_depth: int = 6
    """Number of the predictor's blocks."""
    predictor_heads: int = 3
    """Attention heads of the predictor."""
    energy: EnergyFn = field(default_factory=SmoothL1Energy)
    """Distance between predicted and actual target tokens."""
    target_norm: TargetNorm | None = field(default_factory=LayerNormTargets)
    """What is done to the target tokens before they are predicted: LayerNormTargets() as released,
    PositionStandardize() to take out what all samples share, None for nothing."""
    num_mask_draws: int = 1
    """Independent draws of every mask for each sample in each step. With 2 contexts or more the regularizer compares
    the first two."""
    ema: bool = True
    """Predict the tokens of an EMA of the encoder. Without, the encoder predicts its own and both sides are
    trained: only a regularizer then keeps it from collapsing."""
    momentum: float = 0.996
    """EMA momentum of the target encoder at the first step."""
    final_momentum: float = 1.0
    """EMA momentum at the last step, reached linearly."""
    regularizer: CollapseRegularizer | None = None
    """Collapse regularizer on the encoder's tokens, pooled or not; None trains as released."""
    regularizer_weight: float = 1.0
    """Its weight beside the prediction energy."""
    regularizer_pool: str | None = "mean"
    """How tokens are pooled for it: mean or mean_max. None leaves the tokens to it as one view [b, n, d]."""
    projector_dim: int | None = None
    """Width of the projector between pooling and regularizer, hidden layers and output. Default: no projector."""
    projector_layers: int = 2
    """Linear layers of the projector."""
    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Area of the random crop as a share of the picture."""
    flip: float = 0.0
    """Probability of a horizontal flip; the released I-JEPA has none."""
    pool: str = "mean"
    """How tokens are pooled when the encoder is judged: mean or mean_max."""

    @abstractmethod
    def build_encoder(self, num_channels: int) -> nn.Module:
        """The context encoder; the target encoder starts as its copy."""

    @abstractmethod
    def build_predictor(self) -> Predictor:
        """The predictor."""

    @property
    def pool_name(self) -> str:
        """How tokens become one feature vector when the encoder is judged."""
        return self.pool

    @property
    def init_std(self) -> float | FanInStd:
        """Standard deviation of the initial weights of encoder and predictor."""
        return 0.02 if self.init_gain is None else FanInStd(self.init_gain)

    def encoder_sizes(self, num_channels: int) -> dict[str, Any]:
        """The arguments that every encoder has."""
        return {
            "in_channels": num_channels,
            "embed_dim": self.embed_dim,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "init_std": self.init_std,
            "seed": self.seed,
        }

    def predictor_sizes(self) -> dict[str, Any]:
        """The arguments that every predictor has."""
        return {
            "encoder_dim": self.embed_dim,
            "embed_dim": self.predictor_dim,
            "depth": self.predictor_depth,
            "num_heads": self.predictor_heads,
            "init_std": self.init_std,
            "seed": self.seed,
        }

    def build_regularizer_pool(self) -> MeanPool | MeanMaxPool | None:
        """How tokens are pooled for the regularizer, if they are."""
        return None if self.regularizer_pool is None else pool_by_name(self.regularizer_pool)

    def build_projector(self) -> Projector | None:
        """What stands between pooling and regularizer, if anything."""
        if self.projector_dim is None:
            return None
        pool = self.build_regularizer_pool()
        return Projector(
            self.embed_dim if pool is None else pool.out_dim(self.embed_dim),
            self.projector_dim,
            self.projector_dim,
            num_layers=self.projector_layers,
            seed=self.seed,
        )

    def build_ema(self, total_steps: int) -> EMA:
        """What moves the target encoder."""
        momentum = LinearMomentumSchedule(
            base_momentum=self.momentum, final_momentum=self.final_momentum, total_steps=total_steps
        )
        return EMA(self.momentum, momentum)

    def learner_parts(self, total_steps: int) -> dict[str, Any]:
        """The arguments of a `MaskedJEPA` beside its networks and masks."""
        return {
            "energy": self.energy,
            "ema": self.build_ema(total_steps) if self.ema else None,
            # A copy: a regularizer may hold state, and the recipe builds more than one learner.
            "regularizer": copy.deepcopy(self.regularizer),
            "regularizer_weight": self.regularizer_weight,
            "regularizer_pool": self.build_regularizer_pool(),
            "projector": self.build_projector(),
            "target_norm": self.target_norm,
            "num_mask_draws": self.num_mask_draws,
            "seed": self.seed,
        }


@dataclass(frozen=True, kw_only=True)
class IJEPARecipe(MaskedRecipe):
    """I-JEPA (Assran et al. 2023): predict the target encoder's tokens of masked blocks from the visible ones."""

    stem: Literal["linear", "conv"] = "linear"
    """How patches are embedded: linear, one linear map of each (ViT); conv, overlapping 3 x 3 convolutions of
    stride 2 that see the visible patches only, for small images (the patch size must be a power of two)."""
    stem_width: int = 32
    """Channels of the first convolution where --stem is conv; each later one has twice as many."""
    positions: Literal["wh", "hw", "none"] = "wh"
    """Sin-cos positions of the encoder: wh (I-JEPA as released), hw (V-JEPA's images), none. The predictor
    always has wh."""
    shared_context: bool = False
    """Compute the predictor's context once for all target blocks, which takes about half of its FLOPs. Another model
    (the same with --predictor-depth 1): the context does not see which tokens are asked for. Accuracy on CIFAR-10
    after 2,000 steps of a small ijepa-tiny, one seed: kNN 42.3 % (42.1 without), linear probe 50.3 % (50.5)."""
    mask: MaskSampler = field(default_factory=MultiBlockMasking)
    """What is seen and what is to be predicted."""

    def build_encoder(self, num_channels: int) -> ViT | ConvStemViT:
        """The context encoder; the target encoder starts as its copy."""
        sizes: dict[str, Any] = {
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "positions": self.positions,
            **self.encoder_sizes(num_channels),
        }
        return ViT(**sizes) if self.stem == "linear" else ConvStemViT(stem_width=self.stem_width, **sizes)

    def build_predictor(self) -> Predictor:
        """The predictor."""
        build = SharedContextPredictor if self.shared_context else Predictor
        return build(**self.predictor_sizes())

    def build_learner(self, num_channels: int, total_steps: int) -> nn.Module:
        """I-JEPA with this recipe's parts."""
        encoder, predictor = self.build_encoder(num_channels), self.build_predictor()
        return IJEPA(encoder, predictor, mask=self.mask, **self.learner_parts(total_steps))

    def build_transform(self, preprocessing: Preprocessing) -> MaskedViewTransform:
        """One random crop."""
        return MaskedViewTransform(preprocessing, scale=self.crop_scale, flip_probability=self.flip)

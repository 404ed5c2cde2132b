"""The family of joint-embedding recipes: two augmented views, a projector and any collapse regularizer."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from torch import nn

from torchjepa.collapse import CollapseRegularizer, VICReg
from torchjepa.data import Photometric, Preprocessing, TwoViewTransform, ViewTransform
from torchjepa.models import JointEmbedding
from torchjepa.nn import ConvEncoder, Projector
from torchjepa.nn.pooling import pool_by_name
from torchjepa.recipes.base import Recipe
from torchjepa.types import Encoder


@dataclass(frozen=True, kw_only=True)
class JointEmbeddingRecipe(Recipe):
    """Two views of an image are embedded alike; a regularizer keeps the embeddings from collapsing."""

    widths: tuple[int, ...] = (64, 128, 256)
    """Channels of the convolutional encoder's stages."""
    depths: tuple[int, ...] = (1, 1, 1)
    """Residual blocks of each stage."""
    strides: tuple[int, ...] = (2, 2, 2)
    """How much each stage shrinks height and width; starting with 2 keeps the first stage cheap."""
    projector_dim: int = 512
    """Width of the projector's hidden and output layers."""
    projector_layers: int = 3
    """Linear layers of the projector."""
    regularizer: CollapseRegularizer = field(default_factory=VICReg)
    """The loss on the two embeddings."""
    pool: str = "mean"
    """How tokens are pooled, in training and when the encoder is judged: mean or mean_max."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Area of the random crops as a share of the image."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    colour_a: Photometric = field(default_factory=Photometric)
    """What happens to the colours of the first view."""
    colour_b: Photometric = field(default_factory=Photometric)
    """What happens to the colours of the second view."""

    @property
    def pool_name(self) -> str:
        """How tokens become one feature vector when the encoder is judged."""
        return self.pool

    def build_encoder(self, num_channels: int) -> Encoder:
        """The encoder that both views go through."""
        return ConvEncoder(
            in_channels=num_channels,
            widths=self.widths,
            depths=self.depths,
            strides=self.strides,
            seed=self.seed,
        )

    def build_learner(self, num_channels: int, total_steps: int) -> nn.Module:
        """A joint embedding with this recipe's parts."""
        encoder, pool = self.build_encoder(num_channels), pool_by_name(self.pool)
        projector = Projector(
            pool.out_dim(encoder.embed_dim),
            self.projector_dim,
            self.projector_dim,
            num_layers=self.projector_layers,
            seed=self.seed,
        )
        # A copy: a regularizer may hold state, and the recipe builds more than one learner.
        regularizer = copy.deepcopy(self.regularizer)
        return JointEmbedding(encoder, projector, regularizer=regularizer, pool=pool)

    def build_transform(self, preprocessing: Preprocessing) -> ViewTransform:
        """Two random crops, each with colours of its own."""
        return TwoViewTransform(
            preprocessing,
            scale=self.crop_scale,
            flip_probability=self.flip,
            colour=(self.colour_a, self.colour_b),
        )

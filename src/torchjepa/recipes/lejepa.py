"""The family of LeJEPA recipes: global and local views, one weight, nothing that moves but by gradient."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from torchjepa import collapse
from torchjepa.collapse import CollapseRegularizer, SIGReg
from torchjepa.data import MultiCropTransform, Photometric, Preprocessing
from torchjepa.data.multicrop import local_image_size
from torchjepa.models import LeJEPA
from torchjepa.nn import Projector, ViT
from torchjepa.nn.pooling import pool_by_name
from torchjepa.recipes.joint_embedding import JointEmbeddingRecipe
from torchjepa.types import Encoder

_DINO_COLOURS = MultiCropTransform.colour


@dataclass(frozen=True, kw_only=True)
class LeJEPARecipe(JointEmbeddingRecipe):
    """LeJEPA (Balestriero and LeCun 2025): all views of an image embedded alike, the embeddings kept Gaussian."""

    encoder: Literal["conv", "vit"] = "conv"
    """conv: a convolutional encoder of --widths, --depths and --strides; vit: a vision transformer of
    --patch-size, --embed-dim, --depth and --num-heads."""
    patch_size: int = 16
    """Side of a patch in pixels, for --encoder vit; it must divide both image sizes."""
    embed_dim: int = 384
    """Width of the vision transformer."""
    depth: int = 12
    """Number of its blocks."""
    num_heads: int = 6
    """Its attention heads."""
    projector_dim: int = 2048
    """Width of the projector's hidden layers."""
    projector_out: int = 128
    """Dimension of the embeddings, which --regularizer sees; LeJEPA uses 16 to 512."""
    regularizer: CollapseRegularizer = field(default_factory=SIGReg)
    """What keeps the embeddings from collapsing."""
    regularizer_weight: float = 0.05
    """lambda, its share of the loss; the rest is the distance of the views from their centre."""
    num_global: int = 2
    """Global views of each image."""
    num_local: int = 6
    """Local views of each image."""
    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Area of a global view as a share of the image."""
    local_scale: tuple[float, float] = (0.05, 0.3)
    """Area of a local view as a share of the image."""
    local_size: int | None = None
    """Side of a local view in pixels. Default: 3/7 of --image-size, rounded to whole patches or strides."""
    colour_a: Photometric = _DINO_COLOURS[0]
    """What happens to the colours of the first global view."""
    colour_b: Photometric = _DINO_COLOURS[1]
    """What happens to the colours of the other global views."""
    colour_local: Photometric = _DINO_COLOURS[2]
    """What happens to the colours of local views."""

    @property
    def local_image_size(self) -> int:
        """Side of a local view in pixels."""
        unit = self.patch_size if self.encoder == "vit" else math.prod(self.strides)
        return local_image_size(self.image_size, unit) if self.local_size is None else self.local_size

    def build_encoder(self, num_channels: int) -> Encoder:
        """The encoder that all views go through.

        Raises:
            ValueError: it cannot take views of the global or the local size.
        """
        if self.encoder == "conv":
            return super().build_encoder(num_channels)
        encoder = ViT(
            image_size=self.image_size,
            patch_size=self.patch_size,
            in_channels=num_channels,
            embed_dim=self.embed_dim,
            depth=self.depth,
            num_heads=self.num_heads,
            seed=self.seed,
        )
        if self.num_local and self.local_image_size % self.patch_size:
            raise ValueError(
                f"--local-size {self.local_image_size} is not a whole number of patches of {self.patch_size} "
                f"pixels; take {local_image_size(self.image_size, self.patch_size)}, or leave it out."
            )
        return encoder

    def build_learner(self, num_channels: int, total_steps: int) -> nn.Module:
        """LeJEPA with this recipe's parts."""
        encoder, pool = self.build_encoder(num_channels), pool_by_name(self.pool)
        projector = Projector(
            pool.out_dim(encoder.embed_dim),
            self.projector_dim,
            self.projector_out,
            num_layers=self.projector_layers,
            seed=self.seed,
        )
        loss = collapse.LeJEPA(
            weight=self.regularizer_weight,
            num_global_views=self.num_global,
            # A copy: it may count its calls, and the recipe builds more than one learner.
            regularizer=copy.deepcopy(self.regularizer),
        )
        return LeJEPA(encoder, projector, regularizer=loss, pool=pool)

    def build_transform(self, preprocessing: Preprocessing) -> MultiCropTransform:
        """Global crops, then smaller local ones."""
        return MultiCropTransform(
            preprocessing,
            num_global=self.num_global,
            num_local=self.num_local,
            global_scale=self.crop_scale,
            local_scale=self.local_scale,
            local_size=self.local_image_size,
            flip_probability=self.flip,
            colour=(self.colour_a, self.colour_b, self.colour_local),
        )

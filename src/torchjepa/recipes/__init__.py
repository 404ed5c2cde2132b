"""Recipes: a run as one frozen object. One file per run; a file with a module-level `recipe` is found by itself."""

from torchjepa.recipes.base import Recipe
from torchjepa.recipes.joint_embedding import JointEmbeddingRecipe
from torchjepa.recipes.lejepa import LeJEPARecipe
from torchjepa.recipes.masked import IJEPARecipe, MaskedRecipe
from torchjepa.recipes.video import VJEPA2Recipe, VJEPARecipe

__all__ = [
    "IJEPARecipe",
    "JointEmbeddingRecipe",
    "LeJEPARecipe",
    "MaskedRecipe",
    "Recipe",
    "VJEPA2Recipe",
    "VJEPARecipe",
]

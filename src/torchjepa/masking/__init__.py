"""Masks: which tokens the context encoder sees and which are to be predicted.

A mask is any callable `(grid, batch_size, generator) -> Masks`; `torchjepa.testing.check_mask` judges one.
"""

from torchjepa.masking.block import MultiBlockMasking
from torchjepa.masking.coverage import Coverage, coverage
from torchjepa.masking.random import RandomMasking
from torchjepa.masking.tube import TubeMasking, vjepa_masks
from torchjepa.types import Grid, Masks, MaskSampler

__all__ = [
    "Coverage",
    "Grid",
    "MaskSampler",
    "Masks",
    "MultiBlockMasking",
    "RandomMasking",
    "TubeMasking",
    "coverage",
    "vjepa_masks",
]

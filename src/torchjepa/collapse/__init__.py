"""Collapse regularizers: what keeps a representation from shrinking to a point or a line."""

from torchjepa.collapse.barlow_twins import BarlowTwins, BarlowTwinsLoss
from torchjepa.collapse.base import (
    AbstractCollapseRegularizer,
    CollapseRegularizer,
    RegularizerTerms,
    WeightedTerms,
    named_terms,
)
from torchjepa.collapse.samples import Over, Samples
from torchjepa.collapse.vcreg import VCReg, VCRegLoss
from torchjepa.collapse.vicreg import VICReg, VICRegLoss

__all__ = [
    "AbstractCollapseRegularizer",
    "BarlowTwins",
    "BarlowTwinsLoss",
    "CollapseRegularizer",
    "Over",
    "RegularizerTerms",
    "Samples",
    "VCReg",
    "VCRegLoss",
    "VICReg",
    "VICRegLoss",
    "WeightedTerms",
    "named_terms",
]

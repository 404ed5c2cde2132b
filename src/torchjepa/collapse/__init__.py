"""Collapse regularizers: what keeps a representation from shrinking to a point or a line."""

from torchjepa.collapse.accumulate import accumulate_gradients
from torchjepa.collapse.barlow_twins import BarlowTwins, BarlowTwinsLoss
from torchjepa.collapse.base import (
    AbstractCollapseRegularizer,
    CollapseRegularizer,
    RegularizerTerms,
    WeightedTerms,
    named_terms,
)
from torchjepa.collapse.lejepa import LeJEPA, LeJEPALoss
from torchjepa.collapse.samples import Over, Samples
from torchjepa.collapse.sigreg import SIGReg, SIGRegLoss
from torchjepa.collapse.sum import Sum, SumLoss
from torchjepa.collapse.vcreg import VCReg, VCRegLoss
from torchjepa.collapse.vicreg import VICReg, VICRegLoss
from torchjepa.collapse.wmse import WMSE, WMSELoss

__all__ = [
    "AbstractCollapseRegularizer",
    "BarlowTwins",
    "BarlowTwinsLoss",
    "CollapseRegularizer",
    "LeJEPA",
    "LeJEPALoss",
    "Over",
    "RegularizerTerms",
    "SIGReg",
    "SIGRegLoss",
    "Samples",
    "Sum",
    "SumLoss",
    "VCReg",
    "VCRegLoss",
    "VICReg",
    "VICRegLoss",
    "WMSE",
    "WMSELoss",
    "WeightedTerms",
    "accumulate_gradients",
    "named_terms",
]

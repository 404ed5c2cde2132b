"""Figures of a representation: how many directions it uses, how far it spreads, how like its views are.

Pure functions of features `[n, d]` (float64 inside, a Python number out); none makes an n x n matrix where d is
the smaller side.
"""

from torchjepa.evaluation.spectrum.lidar import lidar
from torchjepa.evaluation.spectrum.pairs import alignment, relative_error, uniformity
from torchjepa.evaluation.spectrum.power_law import AlphaReQ, alpha_req, power_law_of_spectrum
from torchjepa.evaluation.spectrum.rank import (
    attainable_rank,
    covariance_spectrum,
    effective_rank,
    participation_ratio,
    rank_of_spectrum,
    rankme,
    top_share,
)
from torchjepa.evaluation.spectrum.spread import (
    dead_dimensions,
    feature_std,
    mean_cosine,
    mean_off_diagonal_correlation,
    normalized_std,
)

__all__ = [
    "AlphaReQ",
    "alignment",
    "alpha_req",
    "attainable_rank",
    "covariance_spectrum",
    "dead_dimensions",
    "effective_rank",
    "feature_std",
    "lidar",
    "mean_cosine",
    "mean_off_diagonal_correlation",
    "normalized_std",
    "participation_ratio",
    "power_law_of_spectrum",
    "rank_of_spectrum",
    "rankme",
    "relative_error",
    "top_share",
    "uniformity",
]

"""Judging encoders: features, probes, baselines, and figures of a representation's health."""

from torchjepa.evaluation.attentive import (
    AttentiveOutcome,
    AttentiveProbe,
    AttentiveSettings,
    Trial,
    attentive_accuracy,
    fit_attentive,
)
from torchjepa.evaluation.doctor import Diagnosis, Evidence, Finding, Thresholds, Verdict, diagnose
from torchjepa.evaluation.export import write_features
from torchjepa.evaluation.features import Features, extract_features, raw_pixels, stream_features
from torchjepa.evaluation.health import measure_health
from torchjepa.evaluation.judge import Score, best_baseline, judge, read_scores, tasks_in, write_scores
from torchjepa.evaluation.knn import knn_accuracy, knn_predict
from torchjepa.evaluation.linear import LinearProbe, fit_linear, linear_accuracy
from torchjepa.evaluation.neighbours import nearest
from torchjepa.evaluation.read import FeatureFile, read_features
from torchjepa.evaluation.spectrum import (
    AlphaReQ,
    alignment,
    alpha_req,
    attainable_rank,
    covariance_spectrum,
    dead_dimensions,
    effective_rank,
    feature_std,
    lidar,
    mean_cosine,
    mean_off_diagonal_correlation,
    normalized_std,
    participation_ratio,
    rankme,
    relative_error,
    top_share,
    uniformity,
)
from torchjepa.evaluation.table import score_table
from torchjepa.evaluation.tokens import Collector, TokenCache, Tokens

__all__ = [
    "AlphaReQ",
    "AttentiveOutcome",
    "AttentiveProbe",
    "AttentiveSettings",
    "Collector",
    "Diagnosis",
    "Evidence",
    "FeatureFile",
    "Features",
    "Finding",
    "LinearProbe",
    "Score",
    "Thresholds",
    "TokenCache",
    "Tokens",
    "Trial",
    "Verdict",
    "alignment",
    "alpha_req",
    "attainable_rank",
    "attentive_accuracy",
    "best_baseline",
    "covariance_spectrum",
    "dead_dimensions",
    "diagnose",
    "effective_rank",
    "extract_features",
    "feature_std",
    "fit_attentive",
    "fit_linear",
    "judge",
    "knn_accuracy",
    "knn_predict",
    "lidar",
    "linear_accuracy",
    "mean_cosine",
    "mean_off_diagonal_correlation",
    "measure_health",
    "nearest",
    "normalized_std",
    "participation_ratio",
    "rankme",
    "raw_pixels",
    "read_features",
    "read_scores",
    "relative_error",
    "score_table",
    "stream_features",
    "tasks_in",
    "top_share",
    "uniformity",
    "write_features",
    "write_scores",
]

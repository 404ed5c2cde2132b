"""Judging encoders: features, probes, baselines, and figures of a representation's health."""

from torchjepa.evaluation.export import write_features
from torchjepa.evaluation.features import Features, extract_features, raw_pixels, stream_features
from torchjepa.evaluation.health import measure_health
from torchjepa.evaluation.judge import Score, best_baseline, judge, read_scores, score_table, write_scores
from torchjepa.evaluation.knn import knn_accuracy, knn_predict
from torchjepa.evaluation.linear import LinearProbe, fit_linear, linear_accuracy
from torchjepa.evaluation.neighbours import nearest
from torchjepa.evaluation.spectrum import (
    attainable_rank,
    covariance_spectrum,
    effective_rank,
    feature_std,
    mean_cosine,
    relative_error,
)

__all__ = [
    "Features",
    "LinearProbe",
    "Score",
    "attainable_rank",
    "best_baseline",
    "covariance_spectrum",
    "effective_rank",
    "extract_features",
    "feature_std",
    "fit_linear",
    "judge",
    "knn_accuracy",
    "knn_predict",
    "linear_accuracy",
    "mean_cosine",
    "measure_health",
    "nearest",
    "raw_pixels",
    "read_scores",
    "relative_error",
    "score_table",
    "stream_features",
    "write_features",
    "write_scores",
]

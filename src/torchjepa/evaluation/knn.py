"""k nearest neighbours on frozen features: the probe without a parameter."""

from __future__ import annotations

import torch
from torch import Tensor

from torchjepa.evaluation.features import Features
from torchjepa.evaluation.neighbours import nearest


def knn_predict(train: Features, queries: Tensor, *, k: int = 20) -> Tensor:
    """The label that most of the k most similar training samples carry.

    argmax_c of sum_{i in N_k(q)} 1[y_i = c]; equal counts go to the class with the larger summed cosine
    similarity, and if those are equal too to the smaller label.

    Args:
        train: the labelled samples; those without a label are left out.
        queries: `[n, d]`.
        k: number of neighbours, 20 as in DINO (Caron et al. 2021, section 4.1).

    Returns:
        Labels, int64 `[n]`.

    Raises:
        ValueError: no training sample has a label, there are fewer than k, or a feature is not finite.
    """
    train = train.labelled
    if len(train) == 0:
        raise ValueError("knn: no training sample has a label (all are -1); there is nothing to vote with.")
    similarity, rows = nearest(queries, train.features, k)
    classes, columns = train.labels.unique(return_inverse=True)
    votes = torch.zeros(len(queries), len(classes), dtype=torch.float64)
    # Summed similarities lie in [-k, k]: divided by 2k + 1 they decide between equal counts and nothing else.
    votes.scatter_add_(1, columns[rows], 1.0 + similarity.double() / (2 * k + 1))
    return classes[votes.argmax(dim=1)]


def knn_accuracy(train: Features, test: Features, *, k: int = 20) -> float:
    """Share of test samples whose label the k nearest training samples vote for, 0 to 1.

    Args:
        train: the samples that vote.
        test: the samples that are judged; in both, those without a label are left out.
        k: number of neighbours.

    Raises:
        ValueError: train or test has no label, train fewer than k, or a feature is not finite.
    """
    test = test.labelled
    if len(test) == 0:
        raise ValueError("knn: no test sample has a label (all are -1); there is nothing to judge.")
    predicted = knn_predict(train, test.features, k=k)
    return (predicted == test.labels).double().mean().item()

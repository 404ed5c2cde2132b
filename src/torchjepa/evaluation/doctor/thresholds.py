"""Where the doctor draws its lines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The lines between healthy and not; a figure's range in healthy and broken runs stands beside each.

    Args:
        normalized_std: below it all samples point the same way (complete collapse).
        std_drop: complete collapse when the spread fell to this share of its highest in the history.
        rank_share: below this share of the attainable rank the spectrum is degenerate (dimensional collapse).
        min_rank: dimensional collapse below this rank whatever is attainable, in more than twice as many
            dimensions.
        dead_share: share of dead dimensions above which it is dimensional.
        content_share: below it tokens tell where they are and nothing of the sample (complete collapse).
        token_share: below this share of variance within a sample all its tokens are alike (token collapse).
        time_share: the same over time (temporal collapse).
        relative_error: at or above it a predictor does no better than the mean target.
        copy_error: a prediction this near to the context, relative to the target's variance, is a copy.
        scale_ratio: target drift when target and online encoder differ in scale by more than this factor.
        target_growth: target drift when the target's spread changed by this factor over the later history
            while the loss rose.
        min_samples: fewer are too few, unless there are four for each dimension.
        warm_up_steps: a history of fewer steps is still warming up.
        settling: spread or rank that changed by more than this share over the last quarter is still moving.
    """

    normalized_std: float = 0.05
    std_drop: float = 0.02
    rank_share: float = 0.08
    min_rank: float = 2.0
    dead_share: float = 0.5
    content_share: float = 0.01
    token_share: float = 0.02
    time_share: float = 0.01
    relative_error: float = 0.97
    copy_error: float = 0.05
    scale_ratio: float = 5.0
    target_growth: float = 5.0
    min_samples: int = 32
    warm_up_steps: int = 50
    settling: float = 0.5

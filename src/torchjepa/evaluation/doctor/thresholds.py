"""Where the doctor draws its lines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The lines between healthy and not. None depends on the features' scale or on the choice of axes.

    Args:
        relative_std: complete collapse below this spread over length, sqrt(trace of covariance / mean |x|^2).
        projector_std: the same of the projector's output, which regularizers spread around 0.
        std_drop: complete collapse when the spread fell to this share of its highest in the history.
        content_share: complete collapse when less than this of the tokens' variance tells of the sample, the
            rest of the position.
        rank_share: dimensional collapse when the effective rank is below this share of the attainable one.
        rank_95_share: the same when so few directions hold 95 % of the variance.
        max_rank_95: so many such directions are enough whatever is attainable.
        min_rank: what either must reach at least, where more than twice as many directions are attainable.
        projector_rank: dimensional collapse when the effective rank of the projector's output is below it.
        projector_dim: a projector of fewer dimensions (and of fewer than a quarter of the encoder's) is too narrow.
        top_share: dimensional collapse when one direction holds more than this share of the variance.
        dead_share: dimensional collapse when more dimensions than this share are dead.
        token_share: token collapse below this share of variance within a sample.
        time_share: temporal collapse below this share of variance within a clip.
        motion: the predictor copies when it moves away from the context by less than this share of the
            target's own squared distance from it, and
        copy_error: its error is above this share of that of copying.
        relative_error: the predictor adds nothing above this error relative to the mean target's.
        scale_ratio: target drift when target and online tokens differ in scale by more than this factor.
        target_change: target drift when the targets' spread grew or shrank by this factor since the middle of
            the run.
        min_samples: fewer samples are too few, unless there are four for each dimension.
        max_samples: so many suffice however many dimensions there are.
        warm_up_steps: a history of fewer steps is still warming up.
        settled_steps: a history of fewer steps shows no trend of targets and no failure of a predictor.
    """

    relative_std: float = 0.05
    projector_std: float = 0.4
    std_drop: float = 0.02
    content_share: float = 0.005
    rank_share: float = 0.08
    rank_95_share: float = 0.06
    max_rank_95: int = 10
    min_rank: float = 2.0
    projector_rank: float = 6.0
    projector_dim: int = 8
    top_share: float = 0.75
    dead_share: float = 0.5
    token_share: float = 0.05
    time_share: float = 0.05
    motion: float = 0.1
    copy_error: float = 0.7
    relative_error: float = 0.99
    scale_ratio: float = 5.0
    target_change: float = 2.5
    min_samples: int = 32
    max_samples: int = 256
    warm_up_steps: int = 50
    settled_steps: int = 200

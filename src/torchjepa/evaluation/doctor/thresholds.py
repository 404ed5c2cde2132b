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
        left_behind: target drift above this error relative to the mean target's: any constant would do better.
        scale_ratio: target drift when target and online tokens differ in scale by more than this factor.
        target_change: target drift when the targets' spread grew or shrank by this factor since the middle of
            the run.
        min_samples: fewer samples are too few, unless there are four for each dimension.
        max_samples: so many suffice however many dimensions there are.
        warm_up_steps: a history of fewer steps is still warming up.
        settled_steps: a history of fewer steps shows no trend of targets and no failure of a predictor.
    """

    # Measured ranges: trained runs on digits and synthetic sets of benchmarks/doctor_zoo, development part.
    # Healthy 0.11 (ViT, weight decay 10) to 1; where that decayed too fast 0.04, I-JEPA without EMA 0.008.
    relative_std: float = 0.06
    projector_std: float = 0.4  # healthy 0.75 to 1; trained by invariance alone 0.22 to 0.27
    std_drop: float = 0.02  # healthy 0.17 to 1
    content_share: float = 0.005  # healthy 0.022 to 1; tokens that tell their place alone 1e-6
    rank_share: float = 0.08  # healthy 0.22 to 1; rank 5 of 64 gives 0.078
    rank_95_share: float = 0.06  # healthy 0.11 to 0.9; eigenvalues j^-3 in 64 dimensions give 0.05
    max_rank_95: int = 10  # so that a smooth spectrum in many dimensions (j^-2 in 512: 11) passes
    min_rank: float = 2.0  # one direction is a line, whatever is attainable
    projector_rank: float = 6.0  # healthy 7.3 to 180 (ten classes span nine); VICReg without covariance 4.9
    projector_dim: int = 8  # LeJEPA's smallest is 16; VICReg and Barlow Twins widen to 8192
    top_share: float = 0.8  # healthy up to 0.36 (0.68 in a run that learned nothing); invariance alone 0.87
    dead_share: float = 0.5  # healthy up to 0.31 (learning rate 100 times too high, yet learned)
    token_share: float = 0.08  # healthy 0.5 to 1; only the mean of the tokens used 0.003 to 0.044
    time_share: float = 0.1  # healthy 0.37 (frames drawn together) to 0.92; drawn together too hard 0.06
    motion: float = 0.1  # healthy 0.21 to 0.64; a copied frame and noise 0.006
    copy_error: float = 0.7  # a copy has 1; one that takes a sixth of the way 0.7
    relative_error: float = 0.99  # healthy 0.09 to 0.96 once settled; I-JEPA without EMA 1.03
    left_behind: float = 1.15  # targets that ran away 1.34; no better than the mean 1.00 to 1.07
    scale_ratio: float = 5.0  # healthy 1.0: an EMA has the online network's scale
    target_change: float = 2.5  # healthy 0.66 to 1.06
    min_samples: int = 32  # the Gaussian's effective rank is then above 0.9 of the attainable one
    max_samples: int = 256  # a usual batch; resolves ranks up to 255
    warm_up_steps: int = 50  # I-JEPA on digits moves its spread by half within 60 steps
    settled_steps: int = 200  # its error against the mean target leaves 1 between steps 80 and 160

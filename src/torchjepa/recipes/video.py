"""The family of video recipes: V-JEPA and V-JEPA 2 with any sizes, clips, masks, energy and schedules."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from torch import nn

from torchjepa.data import ClipTransform, DataSplit, Preprocessing, open_videos
from torchjepa.ema import EMA
from torchjepa.energy import EnergyFn, LpEnergy
from torchjepa.masking import vjepa_masks
from torchjepa.models import VJEPA, VJEPA2
from torchjepa.nn import Predictor, RotaryPositions, ViT
from torchjepa.recipes.masked import MaskedRecipe
from torchjepa.schedules import CosineSchedule, WarmupCosine
from torchjepa.types import MaskSampler


@dataclass(frozen=True, kw_only=True)
class VJEPARecipe(MaskedRecipe):
    """V-JEPA (Bardes et al. 2024): predict the target encoder's tokens of hidden tubes of a clip from the visible."""

    data: str | None = None
    """Folder of videos at any depth, or a table (CSV: path, start, end, label); without it the embedded moving digits
    are used."""
    frame_folder_rate: float = 25.0
    """Frames a second of videos that are folders of images, which do not say."""
    num_frames: int = 16
    """Frames of a clip."""
    frame_rate: float | None = 7.5
    """Frames of a clip for each second of the video, whatever the file's own rate. None: every frame of the file.
    V-JEPA takes every fourth frame, 7.5 a second of a usual video."""
    tubelet_size: int = 2
    """Frames of a token."""
    positions: Literal["thw", "tthw", "rope", "rope-released"] = "thw"
    """Positions of encoder and predictor: sin-cos, thw with equal shares for time, rows and columns (V-JEPA as
    released, its uniform power) or tthw with half of the channels for time; rotary, rope (V-JEPA 2.1) or
    rope-released with the frequencies of V-JEPA 2's weights, which do not turn pairs by one angle."""
    masks: tuple[MaskSampler, ...] = field(default_factory=vjepa_masks)
    """What is seen and what is to be predicted, once for each mask; the mean of their losses is minimised."""
    energy: EnergyFn = field(default_factory=LpEnergy)
    """Distance between predicted and actual target tokens."""
    target_layers: tuple[int, ...] | None = None
    """Blocks of the target encoder whose outputs are predicted side by side, from 0, negative ones from the end (V-JEPA
    2.1). Default: the encoder's output alone."""
    momentum: float = 0.998
    """EMA momentum of the target encoder at the first step."""
    schedule_stretch: float = 1.0
    """Learning rate, weight decay and momentum follow schedules of so many times the run's length, of which they reach
    1 / schedule_stretch. V-JEPA has 1.25; the warm-up is not stretched."""
    crop_ratio: tuple[float, float] = (0.75, 1.35)
    """Width / height of the random crop, the same for all frames of a clip."""
    flip: float = 0.5
    """Probability of a horizontal flip of all frames of a clip."""
    rate_jitter: float = 0.0
    """A clip's frame rate is drawn between the rate divided and multiplied by 1 + rate_jitter."""
    num_clips: int = 1
    """Clips read of each video in a batch, spread over its length, each a sample of its own with masks of its own."""
    short_clips: Literal["hold", "refuse"] = "hold"
    """Videos shorter than a clip: hold their last frame, or refuse them as if they could not be decoded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_frames < 1 or self.tubelet_size < 1 or self.num_frames % self.tubelet_size:
            raise ValueError(
                f"--num-frames must be a multiple of --tubelet-size, at least 1, got {self.num_frames} and "
                f"{self.tubelet_size}."
            )
        if not 1.0 <= self.schedule_stretch < float("inf"):
            raise ValueError(f"--schedule-stretch must be at least 1, got {self.schedule_stretch}.")
        if not self.masks:
            raise ValueError("masks must hold at least one mask, got none.")

    def open_data(
        self, data: str | None = None, test_data: str | None = None, holdout: float | None = None
    ) -> DataSplit:
        """The recipe's videos, or others in their place; arguments as for images."""
        named = self._named_data(data, test_data, holdout)
        return open_videos(**named, frame_folder_rate=self.frame_folder_rate)

    def preprocessing(self, num_channels: int) -> Preprocessing:
        """How a video becomes a tensor when nothing is augmented."""
        frames = super().preprocessing(num_channels)
        return replace(frames, num_frames=self.num_frames, frame_rate=self.frame_rate)

    def build_transform(self, preprocessing: Preprocessing) -> ClipTransform:
        """Random clips with one random crop each."""
        return ClipTransform(
            preprocessing,
            scale=self.crop_scale,
            ratio=self.crop_ratio,
            flip_probability=self.flip,
            rate_jitter=self.rate_jitter,
            num_clips=self.num_clips,
            short=self.short_clips,
        )

    def learning_rate(self, total_steps: int) -> WarmupCosine:
        """The learning rate as a function of the step."""
        return replace(super().learning_rate(total_steps), total_steps=self._stretched(total_steps))

    def weight_decay_schedule(self, total_steps: int) -> CosineSchedule:
        """The weight decay as a function of the step."""
        return super().weight_decay_schedule(self._stretched(total_steps))

    def build_ema(self, total_steps: int) -> EMA:
        """What moves the target encoder."""
        return super().build_ema(self._stretched(total_steps))

    @property
    def num_mask_tokens(self) -> int:
        """Mask tokens of the predictor: one for each mask."""
        return len(self.masks)

    def build_encoder(self, num_channels: int) -> ViT:
        """The context encoder; the target encoder starts as its copy."""
        return ViT(
            image_size=(self.num_frames, self.image_size, self.image_size),
            patch_size=(self.tubelet_size, self.patch_size, self.patch_size),
            positions=self._positions(),
            **self.encoder_sizes(num_channels),
        )

    def build_predictor(self) -> Predictor:
        """The predictor."""
        levels = self.target_layers
        return Predictor(
            positions=self._positions(),
            num_mask_tokens=self.num_mask_tokens,
            target_dim=None if levels is None else len(levels) * self.embed_dim,
            **self.predictor_sizes(),
        )

    def build_learner(self, num_channels: int, total_steps: int) -> nn.Module:
        """V-JEPA with this recipe's parts."""
        return VJEPA(
            self.build_encoder(num_channels),
            self.build_predictor(),
            mask=self.masks,
            target_layers=self.target_layers,
            **self.learner_parts(total_steps),
        )

    def _positions(self) -> str | RotaryPositions:
        return RotaryPositions(pairing="released") if self.positions == "rope-released" else self.positions

    def _stretched(self, total_steps: int) -> int:
        return int(self.schedule_stretch * total_steps)


@dataclass(frozen=True, kw_only=True)
class VJEPA2Recipe(VJEPARecipe):
    """V-JEPA 2 (Assran et al. 2025): V-JEPA with rotary positions, one mask token and constant schedules."""

    frame_rate: float | None = 4.0
    """Frames of a clip for each second of the video, whatever the file's own rate. None: every frame of the file."""
    positions: Literal["thw", "tthw", "rope", "rope-released"] = "rope"
    """As in V-JEPA: rope is V-JEPA 2.1's; V-JEPA 2's weights need rope-released."""
    final_lr: float = 1e-3
    """Learning rate at the last step; that of --lr keeps it constant after the warm-up."""
    momentum: float = 0.99925
    """EMA momentum of the target encoder at the first step."""
    final_momentum: float = 0.99925
    """EMA momentum at the last step, reached linearly; constant as released."""

    @property
    def num_mask_tokens(self) -> int:
        """Mask tokens of the predictor: one for all masks."""
        return 1

    def build_learner(self, num_channels: int, total_steps: int) -> nn.Module:
        """V-JEPA 2 with this recipe's parts."""
        return VJEPA2(
            self.build_encoder(num_channels),
            self.build_predictor(),
            mask=self.masks,
            target_layers=self.target_layers,
            **self.learner_parts(total_steps),
        )

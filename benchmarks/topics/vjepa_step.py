"""V-JEPA's training step with both masks: target, contexts, predictor, backward, AdamW, EMA

An encoder of ViT-Ti's sizes (192 x 12, 3 heads, tubelets of 2 x 16 x 16) and a predictor of 96 x 6, or 96 x 12, on
clips; the short-range and the long-range mask of every clip, the same in every step. `per-mask` is the same step with
the same networks, where encoder and target encoder run once for each mask and each run embeds all patches;
`per-mask, one target` lets the target encoder run once, as the released code does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import Comparison, Contenders, count_products, products, relative_distance
from benchmarks.peers.vjepa import MaskByMask
from torchjepa.engine.devices import launch
from torchjepa.engine.settings import TrainSettings
from torchjepa.engine.step import Stepper
from torchjepa.masking import vjepa_masks
from torchjepa.models import VJEPA
from torchjepa.nn import Predictor, RotaryPositions, ViT
from torchjepa.types import Batch, Grid, Masks, MaskSampler


@dataclass(frozen=True)
class Setting:
    """The sizes of a step."""

    num_frames: int
    side: int
    batch_size: int
    positions: str | RotaryPositions = "thw"
    predictor_depth: int = 6

    def __str__(self) -> str:
        kind = "sin-cos" if self.positions == "thw" else "rotary"
        return (
            f"{self.num_frames} x {self.side} x {self.side}, batch {self.batch_size}, {kind}, "
            f"predictor 96 x {self.predictor_depth}"
        )

    def networks(self) -> tuple[ViT, Predictor]:
        encoder = ViT(patch_size=(2, 16, 16), embed_dim=192, depth=12, num_heads=3, positions=self.positions)
        predictor = Predictor(
            encoder_dim=192,
            embed_dim=96,
            depth=self.predictor_depth,
            num_heads=3,
            positions=self.positions,
            num_mask_tokens=2,
        )
        return encoder, predictor

    def masks(self) -> list[MaskSampler]:
        grid = Grid(t=self.num_frames // 2, h=self.side // 16, w=self.side // 16)
        return [partial(_drawn, mask(grid, self.batch_size, torch.Generator())) for mask in vjepa_masks()]

    def batch(self) -> Batch:
        shape = self.batch_size, 3, self.num_frames, self.side, self.side
        clips = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        return Batch((clips,), torch.arange(self.batch_size), torch.full((self.batch_size,), -1))


def _drawn(masks: Masks, grid: Grid, batch_size: int, generator: torch.Generator) -> Masks:
    # Drawn beforehand: masks are timed in a topic of their own.
    return masks


class Step:
    """The engine's step over one batch, again and again."""

    def __init__(self, setting: Setting, kind: Callable[..., VJEPA], precision: str) -> None:
        settings = TrainSettings(
            total_steps=1 << 40,
            global_batch_size=setting.batch_size,
            learning_rate=lambda step: 1e-3,
            weight_decay=lambda step: 0.04,
            precision=precision,
            accelerator="cpu",
        )
        learner = kind(*setting.networks(), mask=setting.masks())
        self.stepper, self.batch, self.step = Stepper(launch(settings), learner, settings), setting.batch(), 0

    def __call__(self) -> Tensor:
        update = self.stepper.update(iter([self.batch]), self.step)
        self.step += 1
        return update.means["loss"]


def _build(setting: Setting, target_once: bool, precision: str = "32") -> Contenders:
    ours = Step(setting, VJEPA, precision)
    peer = Step(setting, partial(MaskByMask, target_once=target_once), precision)
    # The second and third loss come after updates: gradients and EMA are compared too.
    theirs = torch.stack([peer() for _ in range(3)])
    deviation = relative_distance([torch.stack([ours() for _ in range(3)])], [theirs])
    return Contenders(ours, peer, products(count_products(ours)), deviation)


def comparisons() -> Iterator[Comparison]:
    for setting in (
        Setting(16, 112, 8),
        Setting(16, 112, 8, predictor_depth=12),
        Setting(16, 112, 8, RotaryPositions()),
    ):
        for peer in ("per-mask", "per-mask, one target"):
            yield Comparison(
                f"float32, {setting}",
                peer,
                partial(_build, setting, peer != "per-mask"),
                goal=1.3 if peer == "per-mask" else None,
                tolerance=1e-5,
                pairs=7,
            )
    short = Setting(8, 64, 4)
    yield Comparison(
        f"float32, {short}", "per-mask", partial(_build, short, False), bar=1.1, tolerance=1e-5, pairs=9
    )

"""I-JEPA's training step: target, context, predictor, backward, AdamW, EMA

Sizes are those of the recipe `ijepa-tiny` (encoder 192 x 12, predictor 96 x 6) unless the row says otherwise. Masks are
drawn beforehand and are the same for all; they are timed in the topic `masks`. Ours is what `jepa train` does between
two batches: the engine's own step, lightning-fabric included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.harness import Comparison, Contenders, count_products, products, relative_distance
from benchmarks.peers import ijepa as official
from torchjepa.ema import EMA
from torchjepa.engine.devices import launch
from torchjepa.engine.settings import TrainSettings
from torchjepa.engine.step import Stepper
from torchjepa.masking import MultiBlockMasking
from torchjepa.models import IJEPA
from torchjepa.nn import Predictor, SharedContextPredictor, ViT
from torchjepa.nn.positions import sincos_positions
from torchjepa.types import Batch, Grid, Masks

LR, WEIGHT_DECAY, MOMENTUM = 1e-3, 0.04, 0.996


@dataclass(frozen=True)
class Setting:
    """The sizes of a step."""

    name: str
    image_size: int
    patch_size: int
    batch_size: int
    dim: int = 192
    depth: int = 12
    num_heads: int = 3
    predictor_dim: int = 96
    predictor_depth: int = 6
    predictor_heads: int = 3

    @property
    def grid(self) -> Grid:
        return Grid(h=self.image_size // self.patch_size, w=self.image_size // self.patch_size)

    def encoder(self) -> ViT:
        return ViT(
            patch_size=self.patch_size,
            embed_dim=self.dim,
            depth=self.depth,
            num_heads=self.num_heads,
            image_size=self.image_size,
        )

    def predictor(self, kind: Callable[..., nn.Module] = Predictor) -> nn.Module:
        return kind(
            encoder_dim=self.dim,
            embed_dim=self.predictor_dim,
            depth=self.predictor_depth,
            num_heads=self.predictor_heads,
        )

    def masks(self) -> Masks:
        return MultiBlockMasking()(self.grid, self.batch_size, torch.Generator().manual_seed(0))

    def images(self) -> Tensor:
        shape = (self.batch_size, 3, self.image_size, self.image_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1))


TINY_224 = Setting("ViT-Ti/16 at 224, batch 16", 224, 16, 16)
TINY_32 = Setting("ViT-Ti/4 at 32, batch 128", 32, 4, 128)
# The released predictor is 384 wide whatever the encoder.
WIDE_224 = replace(
    TINY_224,
    name="ViT-Ti/16 at 224, batch 16, predictor 384 x 6",
    predictor_dim=384,
    predictor_heads=6,
)
# For the gate: a second or two.
SHORT = Setting("ViT-Ti/8 at 64, batch 16", 64, 8, 16)
SMALL_224 = Setting(
    "ViT-S/16 at 224, batch 32", 224, 16, 32, dim=384, num_heads=6, predictor_dim=384, predictor_heads=6
)


class OurStep:
    """The engine's step over one batch, again and again."""

    def __init__(
        self,
        setting: Setting,
        precision: str,
        predictor: Callable[..., nn.Module] = Predictor,
        compiled: bool = False,
    ) -> None:
        masks = setting.masks()
        self.learner = IJEPA(
            setting.encoder(),
            setting.predictor(predictor),
            mask=lambda grid, batch_size, generator: masks,
            ema=EMA(MOMENTUM),
        )
        settings = TrainSettings(
            total_steps=1 << 40,
            global_batch_size=setting.batch_size,
            learning_rate=lambda step: LR,
            weight_decay=lambda step: WEIGHT_DECAY,
            precision=precision,
            accelerator="cpu",
            compile=compiled,
        )
        self.stepper = Stepper(launch(settings), self.learner, settings)
        size = setting.batch_size
        self.batch = Batch(
            (setting.images(),), torch.arange(size), torch.zeros(size, dtype=torch.int64), 0, size
        )
        self.step = 0

    def __call__(self) -> Tensor:
        update = self.stepper.update(iter([self.batch]), self.step)
        self.step += 1
        return update.means["loss"]


class OfficialStep:
    """The published step with the weights of our encoder and predictor."""

    def __init__(
        self, setting: Setting, weights: tuple[Mapping[str, Tensor], Mapping[str, Tensor]], autocast: bool
    ) -> None:
        sizes = (setting.grid, setting.dim), (setting.grid, setting.predictor_dim)
        of_encoder, of_predictor = (sincos_positions(grid, dim).float() for grid, dim in sizes)
        encoder = official.Encoder(
            setting.patch_size, setting.dim, setting.depth, setting.num_heads, of_encoder
        )
        predictor = official.Predictor(
            setting.dim,
            setting.predictor_dim,
            setting.predictor_depth,
            setting.predictor_heads,
            of_predictor,
        )
        official.load(encoder, weights[0])
        official.load(predictor, weights[1])
        self.trainer = official.Trainer(
            encoder,
            predictor,
            lr=LR,
            weight_decay=WEIGHT_DECAY,
            momentum=MOMENTUM,
            autocast=autocast,
        )
        self.images, self.masks = setting.images(), setting.masks()

    @classmethod
    def alone(cls, setting: Setting) -> OfficialStep:
        """In float32, with weights drawn as ours are, and nothing of ours left in memory."""
        weights = setting.encoder().state_dict(), setting.predictor().state_dict()
        return cls(setting, weights, autocast=False)

    def __call__(self) -> Tensor:
        return self.trainer.step(self.images, self.masks.context, self.masks.targets)


def warm_up(make: Callable[[Setting], Callable[[], object]]) -> None:
    """Let libraries load and thread pools start, on a step of nothing much."""
    make(Setting("", 64, 8, 2, dim=24, depth=1, predictor_dim=24, predictor_depth=1))()


def build(
    setting: Setting,
    precision: str = "32",
    peer_autocast: bool = False,
    predictor: Callable[..., nn.Module] = Predictor,
    compiled: bool = False,
) -> Contenders:
    """Ours and the published step, and the products of ours alone.

    Args:
        setting: the sizes.
        precision: of ours.
        peer_autocast: whether the published step runs under bfloat16 autocast.
        predictor: of ours.
        compiled: whether ours runs through torch.compile, as `--compile` has it.
    """
    ours = OurStep(setting, precision, predictor, compiled)
    weights = ours.learner.encoder.state_dict(), ours.learner.predictor.state_dict()
    if predictor is not Predictor:
        weights = weights[0], setting.predictor().state_dict()
    peer = OfficialStep(setting, weights, peer_autocast)
    # Another predictor is another model: there is nothing to compare.
    deviation = None
    if predictor is Predictor:
        theirs = torch.stack([peer() for _ in range(3)])
        deviation = relative_distance([torch.stack([ours() for _ in range(3)])], [theirs])
    # The products are those of the plain step: a compiled one does not show them.
    plain = OurStep(setting, precision, predictor) if compiled else ours
    return Contenders(ours, peer, products(count_products(plain)), deviation)


def comparisons() -> Iterator[Comparison]:
    for setting in (TINY_224, TINY_32):
        yield Comparison(
            f"float32, {setting.name}",
            "official",
            lambda setting=setting: build(setting),
            goal=1.15,
            limit_goal=1.25,
            tolerance=1e-5,
        )
        yield Comparison(
            f"ours bf16, theirs float32, {setting.name}",
            "official",
            lambda setting=setting: build(setting, "bf16-mixed"),
            goal=3.0,
            limit_goal=1.6,
            tolerance=2e-2,
        )
        yield Comparison(
            f"bf16 both, {setting.name}",
            "official",
            lambda setting=setting: build(setting, "bf16-mixed", peer_autocast=True),
            goal=1.3,
            tolerance=2e-2,
        )
        yield Comparison(
            f"float32, shared-context predictor, {setting.name}",
            "official",
            lambda setting=setting: build(setting, predictor=SharedContextPredictor),
            goal=2.0,
        )
    yield Comparison(f"float32, {SHORT.name}", "official", lambda: build(SHORT), tolerance=1e-5, bar=0.95)
    yield Comparison(
        f"float32, shared-context predictor, {WIDE_224.name}",
        "official",
        lambda: build(WIDE_224, predictor=SharedContextPredictor),
        goal=2.0,
        pairs=7,
    )
    for setting in (WIDE_224, SMALL_224):
        yield Comparison(
            f"float32, {setting.name}",
            "official",
            lambda setting=setting: build(setting),
            tolerance=1e-5,
            pairs=7,
        )

"""What every recipe has: the data, the run, the optimizer, the machine; and the three parts a subclass builds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from torchjepa.data import IMAGENET_MEAN, IMAGENET_STD, DataSplit, Preprocessing, open_data
from torchjepa.engine import TrainSettings, resolve_precision
from torchjepa.evaluation.judge import check_probes
from torchjepa.rng import derive_seed
from torchjepa.schedules import CosineSchedule, WarmupCosine

_SMALLEST = {
    "image_size": 1,
    "num_workers": 0,
    "seed": 0,
    "steps": 1,
    "batch_size": 1,
    "accumulate": 1,
    "lr": 0,
    "start_lr": 0,
    "final_lr": 0,
    "weight_decay": 0,
    "final_weight_decay": 0,
    "num_nodes": 1,
    "log_every": 1,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
    "probe_every": 0,
    "probe_samples": 2,
    "doctor_every": 0,
    "judge_samples": 2,
}


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """A run as one frozen object: every field is a flag of `jepa train`, and all of it lands in run.json.

    A recipe of your own is a Python file with a module-level `recipe`: one of the classes here with other
    fields, or a subclass that builds other parts.
    """

    data: str | None = None
    """Folder of images at any depth, or an .npz / .npy array; without it the embedded digits are used."""
    test_data: str | None = None
    """Where to judge: a folder or array like --data. Without it a held-out part of --data."""
    holdout: float = 0.1
    """Share of --data that is kept for judging when there is no --test-data; never trained on."""
    max_data_errors: float = 0.01
    """Share of undecodable files above which the run stops; below it they are listed and skipped."""
    image_size: int = 224
    """Side of the square that the network sees, in pixels."""
    mean: tuple[float, ...] | None = None
    """Subtracted from values in [0, 1]; one number, or one each channel. Default: ImageNet's for colour, else 0.5."""
    std: tuple[float, ...] | None = None
    """What they are divided by afterwards. Default: ImageNet's for colour, else 0.25."""
    num_workers: int = 0
    """Processes that load data; 0 loads in the training process. Any number gives the same run."""

    name: str | None = None
    """Name of the run's folder under --runs. Default: the recipe's name."""
    runs: str = "runs"
    """Folder that holds the run folders."""
    seed: int = 0
    """Everything random in the run is keyed by it."""

    steps: int = 1000
    """Optimizer updates; --epochs takes precedence."""
    epochs: float | None = None
    """Passes over the training images, instead of --steps."""
    batch_size: int = 256
    """Samples of one update, over all devices and accumulated micro-batches."""
    accumulate: int = 1
    """Micro-batches that one update is split into, to save memory. Exact: projector and regularizer see the whole
    batch, which costs one more forward pass. Batch norms of the encoder see one micro-batch at a time."""

    lr: float = 1e-3
    """Learning rate at its peak. Nothing rescales it with the batch size."""
    start_lr: float = 0.0
    """Learning rate at the start of the warm-up."""
    final_lr: float = 1e-6
    """Learning rate at the last step."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises linearly from --start-lr to --lr."""
    weight_decay: float = 0.04
    """Weight decay at the first step (not on biases and one-dimensional parameters)."""
    final_weight_decay: float | None = None
    """Weight decay at the last step, reached along a cosine. Default: --weight-decay throughout."""
    clip_grad: float | None = None
    """Largest norm of the gradient; longer ones are scaled down to it."""

    accelerator: str = "auto"
    """auto (the best device present), cpu, cuda, mps."""
    devices: int | Literal["auto"] = "auto"
    """Number of devices on each machine, or auto."""
    num_nodes: int = 1
    """Number of machines."""
    strategy: str = "auto"
    """How devices work together: auto (DDP when there are several), ddp, or fsdp, which spreads the memory of weights,
    gradients and optimizer over them. The same run in any case."""
    precision: str = "32"
    """32, bf16-mixed, 16-mixed (on CUDA only), or auto: bf16-mixed where the hardware multiplies bfloat16, else 32."""
    compile: bool = False
    """Train through torch.compile, block by block: the same run up to rounding. On a CPU it needs a C++ compiler, makes
    a step some 5 % faster in bf16-mixed and no faster in 32, and takes up to a minute at the start (seconds when it is
    done again)."""
    recompute_activations: bool = False
    """Keep no activations inside transformer blocks, but compute them again in the backward pass (activation
    checkpointing): fewer live tensors for another forward pass of the blocks, the same run bit for bit."""

    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: int = 200
    """Steps between two checkpoints; the last step always gets one."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept."""
    probe_every: int = 0
    """Steps between two kNN probes during the training, where there are labels; 0 for none."""
    probe_samples: int = 2000
    """Training images that the kNN probe compares with; it judges on a quarter as many test images."""
    doctor_every: int = 200
    """Steps between two checks for collapse, each half a second for the digits and 2.5 for a ViT-B on one core; 0 for
    none."""
    on_collapse: Literal["warn", "stop"] = "warn"
    """What to do when the doctor finds the run unhealthy: warn, or stop with a checkpoint and exit code 1."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    judge: bool = True
    """At the end, judge the encoder with --probes against its baselines."""
    judge_samples: int = 50_000
    """At most this many training images are used to fit the probes."""
    probes: tuple[str, ...] | None = None
    """What the encoder is judged with at the end, among knn, linear and attentive. Default: kNN and linear, for videos
    attentive too."""

    @abstractmethod
    def build_learner(self, num_channels: int, total_steps: int) -> nn.Module:
        """The model being trained, a `Learner`; called with torch's generator seeded from the recipe's seed."""

    @abstractmethod
    def build_transform(self, preprocessing: Preprocessing) -> Any:
        """The augmentation: what turns a sample into the learner's views."""

    @property
    @abstractmethod
    def pool_name(self) -> str:
        """How tokens become one feature vector when the encoder is judged: `mean` or `mean_max`."""

    def __post_init__(self) -> None:
        for field, smallest in _SMALLEST.items():
            value = getattr(self, field)
            if value is not None and not (smallest <= value < math.inf):
                raise ValueError(f"{_flag(field)} must be a number of at least {smallest}, got {value}.")
        if not 0.0 <= self.warmup < 1.0:
            raise ValueError(f"--warmup is a share of the steps in [0, 1), got {self.warmup}.")
        if not 0.0 < self.holdout < 1.0:
            raise ValueError(f"--holdout is a share of the data in (0, 1), got {self.holdout}.")
        if not 0.0 <= self.max_data_errors <= 1.0:
            raise ValueError(
                f"--max-data-errors is a share of the data in [0, 1], got {self.max_data_errors}."
            )
        if self.probes is not None:
            check_probes(self.probes)
        if self.epochs is not None and not 0.0 < self.epochs < math.inf:
            raise ValueError(
                f"--epochs must be positive, got {self.epochs}; leave it out to train for --steps."
            )
        if self.name is not None and (self.name in ("", ".", "..") or Path(self.name).name != self.name):
            raise ValueError(
                f"--name is the name of a folder under --runs, without a path; got {self.name!r}."
            )

    def total_steps(self, num_samples: int) -> int:
        """Number of updates for a training set of this size."""
        if self.epochs is None:
            return self.steps
        return max(1, round(self.epochs * num_samples / self.batch_size))

    def open_data(
        self, data: str | None = None, test_data: str | None = None, holdout: float | None = None
    ) -> DataSplit:
        """The recipe's data, or others in their place.

        Args:
            data: in the place of the recipe's `data` and `test_data`.
            test_data: in the place of the recipe's `test_data`.
            holdout: in the place of the recipe's.

        Raises:
            DataError: a path that cannot be used.
        """
        return open_data(**self._named_data(data, test_data, holdout))

    def _named_data(self, data: str | None, test_data: str | None, holdout: float | None) -> dict[str, Any]:
        """The arguments by which `data.open_data`, or what takes its place, finds the data."""
        return {
            "data": self.data if data is None else data,
            "test_data": test_data or (self.test_data if data is None else None),
            "holdout": self.holdout if holdout is None else holdout,
            "seed": self.seed,
            # JPEGs are decoded at a reduced size that still serves twice the resolution of the network.
            "min_size": 2 * self.image_size,
        }

    def preprocessing(self, num_channels: int) -> Preprocessing:
        """How an image becomes a tensor when nothing is augmented; ImageNet's statistics for colour."""
        colour = num_channels == 3
        mean = self.mean or (IMAGENET_MEAN if colour else (0.5,))
        std = self.std or (IMAGENET_STD if colour else (0.25,))
        # One number serves all channels.
        mean, std = (each * num_channels if len(each) == 1 else each for each in (mean, std))
        return Preprocessing(image_size=self.image_size, num_channels=num_channels, mean=mean, std=std)

    def seeded_learner(self, num_channels: int, total_steps: int) -> nn.Module:
        """`build_learner` with initial weights that follow from the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "init"))
            return self.build_learner(num_channels, total_steps)

    def learning_rate(self, total_steps: int) -> WarmupCosine:
        """The learning rate as a function of the step."""
        return WarmupCosine(
            base=self.lr,
            start=self.start_lr,
            final=self.final_lr,
            warmup_steps=int(self.warmup * total_steps),
            total_steps=total_steps,
        )

    def weight_decay_schedule(self, total_steps: int) -> CosineSchedule:
        """The weight decay as a function of the step."""
        final = self.weight_decay if self.final_weight_decay is None else self.final_weight_decay
        return CosineSchedule(start=self.weight_decay, final=final, total_steps=total_steps)

    def train_settings(self, total_steps: int) -> TrainSettings:
        """What the engine needs to know."""
        return TrainSettings(
            total_steps=total_steps,
            global_batch_size=self.batch_size,
            accumulate=self.accumulate,
            seed=self.seed,
            learning_rate=self.learning_rate(total_steps),
            weight_decay=self.weight_decay_schedule(total_steps),
            clip_grad=self.clip_grad,
            accelerator=self.accelerator,
            devices=self.devices,
            num_nodes=self.num_nodes,
            strategy=self.strategy,
            precision=resolve_precision(self.precision, self.accelerator),
            compile=self.compile,
            recompute_activations=self.recompute_activations,
            log_every=self.log_every,
            checkpoint_every=self.checkpoint_every,
            keep_checkpoints=self.keep_checkpoints,
        )


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"

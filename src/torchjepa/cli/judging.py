"""From an encoder and a data set to scores: what `jepa train` and `jepa eval` share."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from torchjepa.cli.judged_clips import SeveralClips, hold_middle, pixel_limit, pixels_of
from torchjepa.data import (
    DataSplit,
    ErrorLog,
    EvalStream,
    Preprocessing,
    Source,
    Subset,
    VideoSource,
    tasks_of,
)
from torchjepa.evaluation import (
    Collector,
    Features,
    Score,
    TokenCache,
    Tokens,
    extract_features,
    judge,
    knn_accuracy,
)
from torchjepa.evaluation.features import evaluating
from torchjepa.evaluation.tokens import CACHE_BYTES
from torchjepa.nn.pooling import MeanPool, pool_by_name
from torchjepa.rng import generator

CALIBRATION_SAMPLES = 2048
_MOST_AT_ONCE = 500
_CLIP_BYTES = 64 << 20  # of clips encoded at once: 6 of 16 colour frames at 224 x 224

Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Judge:
    """Takes features of a train and a test set, the same samples for every encoder.

    Args:
        split: what the probes are fitted on and what they are judged on.
        preprocessing: how images or videos become tensors.
        pool: name of the pooling of tokens.
        device: where encoders run.
        errors: file that lists undecodable images, if any.
        max_errors: share of them above which nothing is judged.
        precision: `bf16-mixed` encodes under bfloat16 autocast, as the run trained; anything else in float32.
        seed: keys whatever is drawn.
        num_workers: processes that load.
        part: what the samples are called in `errors`, where several judges share the file.
        batch_size: inputs encoded at once; by default 500 images, or as many clips as fit into 64 MiB.
        probes: by default kNN and linear, for videos the attentive probe too.
        num_clips: clips of each video that it is judged by (see `Collector`).
    """

    split: DataSplit
    preprocessing: Preprocessing
    pool: str
    device: torch.device
    errors: Path | None = None
    max_errors: float = 0.01
    precision: str = "32"
    seed: int = 0
    num_workers: int = 0
    part: str = "judged"
    batch_size: int | None = None
    probes: Sequence[str] | None = None
    num_clips: int = 1

    def __post_init__(self) -> None:
        if self.num_clips < 1 or (self.num_clips > 1 and not self.takes_clips):
            raise ValueError(f"Judge: num_clips must be at least 1, and 1 for images, got {self.num_clips}.")

    @property
    def takes_clips(self) -> bool:
        """Whether the encoder takes clips of videos, and not images."""
        return self.preprocessing.num_frames is not None

    def features(self, encoder: nn.Module) -> tuple[Features, Features]:
        """Pooled features of the training and the test samples under an encoder; of videos by one clip each."""
        pool, streams = pool_by_name(self.pool), replace(self, num_clips=1)._streams()
        with self._autocast():
            train, test = (
                extract_features(encoder, stream, device=self.device, pool=pool) for stream in streams
            )
        return train, test

    def some_features(self, encoder: nn.Module, num_samples: int) -> Features:
        """Pooled features of at most so many training samples."""
        few = sample(self.split.train, num_samples, self.seed, "doctor")
        stream = self._stream(few, self.part, self.num_workers)
        with self._autocast():
            return extract_features(encoder, stream, device=self.device, pool=pool_by_name(self.pool))

    @torch.no_grad()
    def tokens(self, encoder: nn.Module, num_samples: int) -> Tensor:
        """Tokens `[b, n, d]`, not pooled, of at most so many training samples; on the CPU in float32."""
        few = sample(self.split.train, num_samples, self.seed, "tokens")
        # Who judges lists the undecodable files; of so few, one would be too large a share.
        stream = replace(self, errors=None, max_errors=1.0)._stream(few, self.part, 0)
        encoder.eval()
        with self._autocast():
            return torch.cat([encoder(batch.views[0].to(self.device)).float().cpu() for batch in stream])

    def pixels(self) -> tuple[Features, Features]:
        """The preprocessed pixels themselves, shrunk where they are many (see `pixels_of`)."""
        train, test = (self._collect({}, stream, 0)["pixels"].features() for stream in self._streams())
        return train, test

    def scores(
        self, encoder: nn.Module, untrained: nn.Module, tell: Callable[[str], None]
    ) -> tuple[list[Score], Mapping[str, tuple[Features, Features]]]:
        """Scores of the encoder and its baselines, and the features that they were computed from.

        Each side is read once, and every task is judged from the same features.

        Args:
            encoder: the trained one.
            untrained: the same network at step 0, calibrated.
            tell: receives what a reader of the scores should know.
        """
        if limit := pixel_limit(self.preprocessing):
            tell(f"The raw-pixel baseline is judged at {limit}.")
        encoders: dict[str, Encode] = {"encoder": encoder, "untrained": untrained}
        if self.takes_clips:
            encoders = {"encoder": encoder, "frame": hold_middle(encoder), "untrained": untrained}
        probes = self._possible_probes(encoder, len(encoders), tell)
        token_bytes = CACHE_BYTES // (2 * len(encoders)) if "attentive" in probes else 0
        with ExitStack() as stack:
            for network in (encoder, untrained):
                stack.enter_context(evaluating(network))
            train, test = (self._collect(encoders, stream, token_bytes) for stream in self._streams())
        features = {name: (train[name].features(), test[name].features()) for name in train}
        tokens = {name: (_kept(train[name]), _kept(test[name])) for name in encoders if token_bytes}
        scores = judge(
            features,
            tokens=tokens,
            tasks=tasks_in_both(self.split),
            probes=probes,
            seed=self.seed,
            device=self.device,
            tell=tell,
        )
        return scores, features

    def knn(self, encoder: nn.Module) -> float:
        """The kNN accuracy alone; what the probe during training shows."""
        train, test = self.features(encoder)
        return knn_accuracy(train, test, k=min(20, len(train.labelled)))

    @torch.no_grad()
    def calibrate(self, encoder: nn.Module) -> None:
        """Give the batch norms of an untrained encoder the statistics of the data, as an honest baseline has.

        Freshly made batch norms claim mean 0 and variance 1; a trained encoder would beat that baseline by its
        statistics alone. The running mean becomes the mean over a few thousand samples, the running variance
        that of the batches' unbiased variances; without batch norms nothing changes.

        Args:
            encoder: changed in place, and left in evaluation mode.
        """
        encoder.eval()
        parts = encoder.modules()
        norms = [part for part in parts if isinstance(getattr(part, "running_mean", None), Tensor)]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        few = sample(self.split.train, CALIBRATION_SAMPLES, self.seed, "calibrate")
        for norm in norms:
            norm.train()
        with self._autocast():
            self._average(encoder, norms, few)
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        encoder.eval()

    def _average(self, encoder: nn.Module, norms: list[nn.Module], few: Source) -> None:
        seen = 0
        for batch in self._stream(few, f"{self.part} calibration", 0):
            if len(batch) < 2 and seen:  # one sample has no variance
                continue
            seen += len(batch)
            for norm in norms:
                norm.momentum = len(batch) / seen  # type: ignore[assignment]
            encoder(batch.views[0].to(self.device))

    def _collect(
        self, encoders: Mapping[str, Encode], stream: EvalStream, token_bytes: int
    ) -> dict[str, Collector]:
        """What encoders, and the raw pixels, make of one side; with `token_bytes` each keeps its tokens."""
        num_videos = len(stream.source) // self.num_clips
        folder = None if self.errors is None else self.errors.parent
        found = {
            name: Collector(
                encode,
                pool=pool_by_name(self.pool),
                device=self.device,
                cache=TokenCache(num_videos, max_bytes=token_bytes, folder=folder) if token_bytes else None,
                num_clips=self.num_clips,
            )
            for name, encode in encoders.items()
        }
        found["pixels"] = Collector(pixels_of, pool=MeanPool(), device="cpu", num_clips=self.num_clips)
        for batch in stream:
            with self._autocast():
                for collector in found.values():
                    collector.add(batch)
        return found

    def _possible_probes(
        self, encoder: nn.Module, num_encoders: int, tell: Callable[[str], None]
    ) -> tuple[str, ...]:
        # Told before hours of encoding; a full disk under a mapped file would end the process.
        by_default = ("knn", "linear", "attentive") if self.takes_clips else ("knn", "linear")
        probes = tuple(by_default if self.probes is None else self.probes)
        if "attentive" not in probes:
            return probes
        grid = encoder.grid(self.preprocessing.input_shape)  # type: ignore[operator]
        num = sum(len(side) for side in (self.split.train, self.split.test)) * self.num_clips
        size = 2 * num_encoders * num * grid.num_tokens * int(encoder.embed_dim)  # type: ignore[arg-type]
        folder = tempfile.gettempdir() if self.errors is None else self.errors.parent
        free = shutil.disk_usage(folder).free
        if size < free or 2 * size <= CACHE_BYTES:
            return probes
        text = (
            f"The attentive probe needs {size / 1e9:.0f} GB for the tokens of {num:,} samples, and {folder} has "
            f"{free / 1e9:.0f} GB left; it can be had on fewer: jepa eval --probes attentive --samples N."
        )
        if self.probes is not None:
            raise ValueError(text)
        tell(text)
        return tuple(probe for probe in probes if probe != "attentive")

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "bf16-mixed":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def _streams(self) -> tuple[EvalStream, EvalStream]:
        return (
            self._stream(self.split.train, f"{self.part} train", self.num_workers, self.num_clips),
            self._stream(self.split.test, f"{self.part} test", self.num_workers, self.num_clips),
        )

    def _stream(self, source: Source, part: str, num_workers: int, num_clips: int = 1) -> EvalStream:
        if num_clips > 1:
            source = SeveralClips(cast(VideoSource, source), num_clips, self.preprocessing)
        log = ErrorLog(self.errors, len(source), self.max_errors, part=part)
        return EvalStream(
            source,
            self.preprocessing,
            batch_size=self._batch_size(num_clips),
            num_workers=num_workers,
            errors=log,
        )

    def _batch_size(self, num_clips: int) -> int:
        size = self.batch_size
        if size is None:
            each = 4 * self.preprocessing.num_channels * math.prod(self.preprocessing.input_shape)
            size = min(_MOST_AT_ONCE, _CLIP_BYTES // each) if self.takes_clips else _MOST_AT_ONCE
        # The clips of a video come in one batch.
        return num_clips * max(1, size // num_clips)


def _kept(collector: Collector) -> Tokens:
    assert collector.cache is not None
    return collector.cache.tokens()


def tasks_in_both(split: DataSplit) -> dict[str, tuple[Tensor, Tensor]]:
    """The labels of all training and of all test samples, for each task that both sides have."""
    train, test = tasks_of(split.train), tasks_of(split.test)
    return {
        name: (torch.from_numpy(train[name].labels), torch.from_numpy(test[name].labels))
        for name in train
        if name in test
    }


def sample(source: Source, most: int, seed: int, purpose: str) -> Source:
    """At most `most` samples of a source, a choice keyed by the seed and the purpose."""
    if most >= len(source):
        return source
    order = torch.randperm(len(source), generator=generator(seed, purpose))
    return Subset(source, sorted(order[:most].tolist()))


def fewer(split: DataSplit, max_train: int, max_test: int | None, seed: int) -> DataSplit:
    """A split with at most so many samples on each side."""
    test = split.test if max_test is None else sample(split.test, max_test, seed, "judge test")
    return DataSplit(sample(split.train, max_train, seed, "judge train"), test, split.description)


def has_labels(split: DataSplit) -> bool:
    """Whether there is a task of which both sides have at least two classes to tell apart."""
    return any(
        all(len(side[side >= 0].unique()) > 1 for side in sides) for sides in tasks_in_both(split).values()
    )

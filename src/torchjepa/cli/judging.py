"""From an encoder and a data set to scores: what `jepa train` and `jepa eval` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from torchjepa.data import DataSplit, ErrorLog, EvalStream, ImageSource, Preprocessing, Subset
from torchjepa.evaluation import Features, Score, extract_features, judge, knn_accuracy, raw_pixels
from torchjepa.nn.pooling import pool_by_name
from torchjepa.rng import generator

CALIBRATION_SAMPLES = 2048
# Larger images are shrunk for the raw-pixel baseline: 50,000 at 224 x 224 in colour would take 30 GB.
PIXEL_SIDE = 64


@dataclass(frozen=True)
class Judge:
    """Takes features of a train and a test set, the same samples for every encoder.

    Args:
        split: what the probes are fitted on and what they are judged on.
        preprocessing: how images become tensors.
        pool: name of the pooling of tokens.
        device: where encoders run.
        errors: file that lists undecodable images, if any.
        max_errors: share of them above which nothing is judged.
        precision: `bf16-mixed` encodes under bfloat16 autocast, as the run trained; anything else in float32.
        seed: keys whatever is drawn.
        num_workers: processes that load.
        part: what the samples are called in `errors`, where several judges share the file.
        batch_size: images encoded at once.
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
    batch_size: int = 500

    def features(self, encoder: nn.Module) -> tuple[Features, Features]:
        """Pooled features of the training and the test samples under an encoder."""
        pool = pool_by_name(self.pool)
        with self._autocast():
            train, test = (
                extract_features(encoder, stream, device=self.device, pool=pool) for stream in self._streams()
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
        """The preprocessed pixels themselves, of at most 64 x 64."""
        side = min(self.preprocessing.image_size, PIXEL_SIDE)
        smaller = replace(self, preprocessing=replace(self.preprocessing, image_size=side))
        train, test = (raw_pixels(stream) for stream in smaller._streams())
        return train, test

    def scores(
        self, encoder: nn.Module, untrained: nn.Module, tell: Callable[[str], None]
    ) -> tuple[list[Score], Mapping[str, tuple[Features, Features]]]:
        """Scores of the encoder and its baselines, and the features that they were computed from.

        Args:
            encoder: the trained one.
            untrained: the same network at step 0, calibrated.
            tell: receives what a reader of the scores should know.
        """
        if self.preprocessing.image_size > PIXEL_SIDE:
            tell(f"The raw-pixel baseline is judged at {PIXEL_SIDE} x {PIXEL_SIDE} pixels.")
        features = {
            "encoder": self.features(encoder),
            "untrained": self.features(untrained),
            "pixels": self.pixels(),
        }
        return judge(features, seed=self.seed, tell=tell), features

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

    def _average(self, encoder: nn.Module, norms: list[nn.Module], few: ImageSource) -> None:
        seen = 0
        for batch in self._stream(few, f"{self.part} calibration", 0):
            if len(batch) < 2 and seen:  # one sample has no variance
                continue
            seen += len(batch)
            for norm in norms:
                norm.momentum = len(batch) / seen  # type: ignore[assignment]
            encoder(batch.views[0].to(self.device))

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "bf16-mixed":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def _streams(self) -> tuple[EvalStream, EvalStream]:
        return (
            self._stream(self.split.train, f"{self.part} train", self.num_workers),
            self._stream(self.split.test, f"{self.part} test", self.num_workers),
        )

    def _stream(self, source: ImageSource, part: str, num_workers: int) -> EvalStream:
        log = ErrorLog(self.errors, len(source), self.max_errors, part=part)
        return EvalStream(
            source, self.preprocessing, batch_size=self.batch_size, num_workers=num_workers, errors=log
        )


def sample(source: ImageSource, most: int, seed: int, purpose: str) -> ImageSource:
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
    """Whether both sides have at least two classes to tell apart."""
    return all(len(np.unique(side.labels[side.labels >= 0])) > 1 for side in (split.train, split.test))

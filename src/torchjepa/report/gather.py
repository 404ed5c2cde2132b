"""Gathering a report's material from a trained learner and its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchjepa.data import DataSplit, ImageSource, Preprocessing
from torchjepa.evaluation import Features, covariance_spectrum, nearest
from torchjepa.report.material import MaskExamples, NeighbourExamples, PatchMaps, Pictures, ReportMaterial
from torchjepa.report.pictures import resized, shrink, to_pictures
from torchjepa.rng import generator
from torchjepa.types import Batch, Grid, MaskSampler

_NUM_MASKED, _NUM_VIEWED, _NUM_MAPPED, _NUM_QUERIES, _NUM_NEIGHBOURS = 4, 8, 6, 6, 6
_MAX_SPECTRUM_SAMPLES = 20_000


@dataclass(frozen=True, kw_only=True)
class Gatherer:
    """Gathers what a report shows, a few pictures of each kind.

    Args:
        split: the data that were trained on and judged on.
        preprocessing: what an image goes through before it meets the encoder.
        grid: the encoder's token grid.
        encode: the trained encoder: `[b, c, h, w]` to tokens `[b, n, d]`.
        untrained: the same of the untrained encoder.
        device: where both live.
        seed: which pictures are taken.
    """

    split: DataSplit
    preprocessing: Preprocessing
    grid: Grid
    encode: Callable[[Tensor], Tensor]
    untrained: Callable[[Tensor], Tensor]
    device: torch.device | str
    seed: int = 0

    def gather(
        self,
        features: Mapping[str, tuple[Features, Features]],
        train_batch: Batch,
        *,
        mask: MaskSampler | None = None,
        notes: Sequence[str] = (),
    ) -> ReportMaterial:
        """The material of one report.

        Args:
            features: name (`encoder`, `untrained`) to the features of training and test samples.
            train_batch: some augmented training samples, as the learner sees them.
            mask: what the learner masks with, where it does.
            notes: sentences that a reader of the scores should know.
        """
        spectra = {
            name: covariance_spectrum(pair[0].features[:_MAX_SPECTRUM_SAMPLES]).numpy()
            for name, pair in features.items()
            if name in ("encoder", "untrained") and len(pair[0]) > 1
        }
        return ReportMaterial(
            masks=None if mask is None else self._masks(train_batch, mask),
            views=self._views(train_batch) if len(train_batch.views) > 1 else None,
            patch_maps=self._patch_maps(features["encoder"][1]),
            neighbours=self._neighbours(*features["encoder"]),
            spectra=spectra,
            notes=tuple(notes),
        )

    def _masks(self, batch: Batch, mask: MaskSampler) -> MaskExamples:
        images = self._pictures(batch.views[0][:_NUM_MASKED])
        drawn = mask(self.grid, len(images), generator(self.seed, "report-mask"))
        shape = np.array([self.grid.h, self.grid.w])
        return MaskExamples(images, shape, drawn.context.numpy(), drawn.targets.numpy())

    def _views(self, batch: Batch) -> Pictures:
        # Local views are smaller than global ones: on the page all have the size of the first.
        pictures = [shrink(self._pictures(view[:_NUM_VIEWED])) for view in batch.views]
        return np.stack([resized(each, pictures[0].shape[1:3]) for each in pictures], axis=1)

    def _patch_maps(self, test: Features) -> PatchMaps | None:
        if min(self.grid.h, self.grid.w) < 2 or self.grid.t > 1:
            return None
        ids = test.ids[_spread(test.labels, _NUM_MAPPED, self.seed)]
        x = torch.stack([self.preprocessing(self.split.test.read(int(i))) for i in ids])
        maps = [self._tokens(encode, x) for encode in (self.encode, self.untrained)]
        return PatchMaps(self._pictures(x), *maps)

    @torch.no_grad()
    def _tokens(self, encode: Callable[[Tensor], Tensor], x: Tensor) -> NDArray[np.float32]:
        tokens = encode(x.to(self.device)).float().cpu().numpy()
        return tokens.reshape(len(x), self.grid.h, self.grid.w, -1)

    def _neighbours(self, train: Features, test: Features) -> NeighbourExamples | None:
        if len(train) == 0 or len(test) == 0:
            return None
        queries = test[_spread(test.labels, _NUM_QUERIES, self.seed)]
        similarity, rows = nearest(queries.features, train.features, min(_NUM_NEIGHBOURS, len(train)))
        found = [train[row] for row in rows]
        return NeighbourExamples(
            queries=self._read(self.split.test, queries.ids),
            query_labels=_names(self.split.test, queries.labels),
            neighbours=np.stack([self._read(self.split.train, each.ids) for each in found]),
            neighbour_labels=np.stack([_names(self.split.train, each.labels) for each in found]),
            similarity=similarity.numpy(),
        )

    def _read(self, source: ImageSource, ids: Tensor) -> Pictures:
        return shrink(self._pictures(torch.stack([self.preprocessing(source.read(int(i))) for i in ids])))

    def _pictures(self, x: Tensor) -> Pictures:
        return to_pictures(x, self.preprocessing.mean, self.preprocessing.std)


def _spread(labels: Tensor, num: int, seed: int) -> Tensor:
    # Random samples, one of each class before a second of any.
    order = torch.randperm(len(labels), generator=generator(seed, "report-examples"))
    seen: dict[int, int] = {}
    turn = []
    for label in labels[order].tolist():
        turn.append(seen.get(label, 0))
        seen[label] = turn[-1] + 1
    return order[torch.tensor(turn, dtype=torch.int64).argsort(stable=True)[:num]]


def _names(source: ImageSource, labels: Tensor) -> NDArray[np.str_]:
    return np.array([source.classes[label] if label >= 0 else "" for label in labels.tolist()], dtype=np.str_)

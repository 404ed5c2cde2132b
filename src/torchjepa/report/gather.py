"""Gathering a report's material from a trained learner and its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchjepa.data import DataSplit, Preprocessing, Source, read_input
from torchjepa.evaluation import Features, covariance_spectrum, nearest
from torchjepa.report.clips import clip_examples, clip_maps, spaced
from torchjepa.report.material import (
    ClipExamples,
    ClipMaps,
    MaskExamples,
    NeighbourExamples,
    PatchMaps,
    Pictures,
    ReportMaterial,
)
from torchjepa.report.pictures import resized, shrink, to_pictures
from torchjepa.rng import generator
from torchjepa.types import Batch, Grid, MaskSampler

_NUM_MASKED, _NUM_VIEWED, _NUM_MAPPED, _NUM_QUERIES, _NUM_NEIGHBOURS = 4, 8, 6, 6, 6
# A clip takes the place of several pictures.
_NUM_CLIPS, _NUM_CLIP_QUERIES, _NUM_CLIP_NEIGHBOURS, _NUM_STRIP_FRAMES = 3, 5, 4, 3
_MAX_SPECTRUM_SAMPLES = 20_000


@dataclass(frozen=True, kw_only=True)
class Gatherer:
    """Gathers what a report shows, a few pictures or clips of each kind.

    Args:
        split: the data that were trained on and judged on.
        preprocessing: what a sample goes through before it meets the encoder; with `num_frames` it is a clip.
        grid: the encoder's token grid.
        encode: the trained encoder: `[b, c, h, w]` or `[b, c, t, h, w]` to tokens `[b, n, d]`.
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
        masks: Sequence[MaskSampler] = (),
        notes: Sequence[str] = (),
    ) -> ReportMaterial:
        """The material of one report.

        Args:
            features: name (`encoder`, `untrained`) to the features of training and test samples.
            train_batch: some augmented training samples, as the learner sees them.
            masks: what the learner masks with, where it does.
            notes: sentences that a reader of the scores should know.
        """
        spectra = {
            name: covariance_spectrum(pair[0].features[:_MAX_SPECTRUM_SAMPLES]).numpy()
            for name, pair in features.items()
            if name in ("encoder", "untrained") and len(pair[0]) > 1
        }
        train, test = features["encoder"]
        material = ReportMaterial(
            neighbours=self._neighbours(train, test), spectra=spectra, notes=tuple(notes)
        )
        if self._is_video:
            return replace(material, clips=self._clips(train_batch, masks), clip_maps=self._clip_maps(test))
        return replace(
            material,
            masks=self._masks(train_batch, masks) if masks else None,
            views=self._views(train_batch) if len(train_batch.views) > 1 else None,
            patch_maps=self._patch_maps(test),
        )

    @property
    def _is_video(self) -> bool:
        return self.preprocessing.num_frames is not None

    def _clips(self, batch: Batch, masks: Sequence[MaskSampler]) -> ClipExamples:
        clips = [shrink(self._pictures(view[:_NUM_CLIPS])) for view in batch.views]
        return clip_examples(np.stack(clips, axis=1), masks, self.grid, self.seed)

    def _clip_maps(self, test: Features) -> ClipMaps | None:
        if min(self.grid.h, self.grid.w) < 2:
            return None
        x, maps = self._mapped(test, _NUM_CLIPS)
        return clip_maps(shrink(self._pictures(x)), *maps)

    def _masks(self, batch: Batch, masks: Sequence[MaskSampler]) -> MaskExamples:
        images = self._pictures(batch.views[0][:_NUM_MASKED])
        keys = [("report-mask",), *(("report-mask", index) for index in range(1, len(masks)))]
        drawn = [mask(self.grid, len(images), generator(self.seed, *key)) for mask, key in zip(masks, keys)]
        return MaskExamples(
            images.repeat(len(masks), axis=0),
            np.array([self.grid.h, self.grid.w]),
            _interleaved([each.context.numpy() for each in drawn]),
            _interleaved([each.targets.numpy() for each in drawn]),
        )

    def _views(self, batch: Batch) -> Pictures:
        # Local views are smaller than global ones: on the page all have the size of the first.
        pictures = [shrink(self._pictures(view[:_NUM_VIEWED])) for view in batch.views]
        return np.stack([resized(each, pictures[0].shape[1:3]) for each in pictures], axis=1)

    def _patch_maps(self, test: Features) -> PatchMaps | None:
        if min(self.grid.h, self.grid.w) < 2 or self.grid.t > 1:
            return None
        x, maps = self._mapped(test, _NUM_MAPPED)
        return PatchMaps(self._pictures(x), *(each[:, 0] for each in maps))

    def _mapped(self, test: Features, num: int) -> tuple[Tensor, list[NDArray[np.float32]]]:
        x = self._inputs(self.split.test, test.ids[_spread(test.labels, num, self.seed)])
        return x, [self._tokens(encode, x) for encode in (self.encode, self.untrained)]

    @torch.no_grad()
    def _tokens(self, encode: Callable[[Tensor], Tensor], x: Tensor) -> NDArray[np.float32]:
        tokens = encode(x.to(self.device)).float().cpu().numpy()
        return tokens.reshape(len(x), *self.grid.shape, -1)

    def _neighbours(self, train: Features, test: Features) -> NeighbourExamples | None:
        if len(train) == 0 or len(test) == 0:
            return None
        num_queries, num_neighbours = (
            (_NUM_CLIP_QUERIES, _NUM_CLIP_NEIGHBOURS) if self._is_video else (_NUM_QUERIES, _NUM_NEIGHBOURS)
        )
        queries = test[_spread(test.labels, num_queries, self.seed)]
        similarity, rows = nearest(queries.features, train.features, min(num_neighbours, len(train)))
        found = [train[row] for row in rows]
        return NeighbourExamples(
            queries=self._read(self.split.test, queries.ids),
            query_labels=_names(self.split.test, queries.labels),
            neighbours=np.stack([self._read(self.split.train, each.ids) for each in found]),
            neighbour_labels=np.stack([_names(self.split.train, each.labels) for each in found]),
            similarity=similarity.numpy(),
        )

    def _read(self, source: Source, ids: Tensor) -> Pictures:
        pictures = shrink(self._pictures(self._inputs(source, ids)))
        return pictures[:, spaced(pictures.shape[1], _NUM_STRIP_FRAMES)] if self._is_video else pictures

    def _inputs(self, source: Source, ids: Tensor) -> Tensor:
        return torch.stack([read_input(source, int(i), self.preprocessing) for i in ids])

    def _pictures(self, x: Tensor) -> Pictures:
        frames = x.transpose(1, 2) if self._is_video else x
        return to_pictures(frames, self.preprocessing.mean, self.preprocessing.std)


def _interleaved(ids: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    # Masks of other lengths are filled up with -1; the masks of a picture follow each other.
    sizes = np.max([each.shape[1:] for each in ids], axis=0)
    filled = [
        np.pad(
            each, [(0, 0), *((0, size - own) for size, own in zip(sizes, each.shape[1:]))], constant_values=-1
        )
        for each in ids
    ]
    return np.stack(filled, axis=1).reshape(-1, *sizes)


def _spread(labels: Tensor, num: int, seed: int) -> Tensor:
    # Random samples, one of each class before a second of any.
    order = torch.randperm(len(labels), generator=generator(seed, "report-examples"))
    seen: dict[int, int] = {}
    turn = []
    for label in labels[order].tolist():
        turn.append(seen.get(label, 0))
        seen[label] = turn[-1] + 1
    return order[torch.tensor(turn, dtype=torch.int64).argsort(stable=True)[:num]]


def _names(source: Source, labels: Tensor) -> NDArray[np.str_]:
    return np.array([source.classes[label] if label >= 0 else "" for label in labels.tolist()], dtype=np.str_)

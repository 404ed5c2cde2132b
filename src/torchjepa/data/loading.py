"""Streams of batches: keyed ones to train on, in any number of workers, and all samples in order to judge."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from torchjepa.data.clips import ReadingTransform, middle_clip
from torchjepa.data.errors import DataError, DecodeError, ErrorLog, WorkerKilledError
from torchjepa.data.jpeg import TopRows
from torchjepa.data.source import ImageSource, PartialSource, Source, VideoSource
from torchjepa.data.transforms import CroppingTransform, Crops, Preprocessing, SampleKeys, ViewTransform
from torchjepa.rng import uniforms
from torchjepa.types import Batch, BatchKeys

_REPLACEMENTS = 16  # tries for one undecodable sample; at 1 % bad files all fail once in 1e32 batches


class _Raw(NamedTuple):
    # What crosses from a worker: uint8 crops [v, b, h, w, c] of each size, a quarter of the bytes of floats,
    # and whose they are.
    crops: Crops
    ids: Tensor
    labels: Tensor
    errors: tuple[tuple[int, str, str], ...]
    keys: BatchKeys | None


@dataclass(frozen=True)
class _Failure:
    message: str
    details: str | None  # the worker's traceback, where the failure is not about the data


class BatchStream:
    """The batches that a learner trains on.

    Workers decode and crop; colours and normalisation follow on the device, on the whole batch. A batch is a
    function of the seed and its keys alone, so any number of workers gives the same run. A sample that cannot
    be decoded is replaced by another, drawn with the key `(seed, epoch, sample)`, and listed in `errors`.

    Args:
        source: where the images come from.
        transform: from decoded images to views.
        seed: the seed of the run.
        num_workers: processes that decode and crop ahead; 0 does it in this one.
        errors: the list of samples that cannot be decoded.

    Raises:
        ValueError: num_workers below 0.
    """

    def __init__(
        self,
        source: Source,
        transform: ViewTransform,
        *,
        seed: int,
        num_workers: int = 0,
        errors: ErrorLog,
    ) -> None:
        _check_workers(num_workers)
        self.source, self.transform, self.errors = source, transform, errors
        self.seed, self.num_workers = seed, num_workers

    def batches(self, keys: Iterable[BatchKeys], device: torch.device | str) -> Generator[Batch, None, None]:
        """The batches named by `keys`, in order, on a device; closing the iterator ends the workers.

        Args:
            keys: what each batch holds, as the engine's `KeyedSampler` yields it; read ahead of the batches.
            device: where the views go.

        Raises:
            DataError: too many samples cannot be decoded, or one and all its replacements cannot.
            WorkerKilledError: a worker was killed.
            RuntimeError: a worker failed.
        """
        samples = _TrainingSamples(self.source, self.transform, self.seed)
        for raw in _load(samples, keys, self.num_workers, torch.device(device)):
            for error in raw.errors:
                self.errors.add(*error)
            assert raw.keys is not None
            crops, ids = tuple(each.to(device, non_blocking=True) for each in raw.crops), raw.ids
            views = self.transform.finish(crops, _sample_keys(self.seed, raw.keys.epochs, ids.numpy()))
            batch = Batch(views, ids, raw.labels, raw.keys.row_start, raw.keys.global_size)
            yield batch.to(device)


class EvalStream:
    """Every sample of a source once, in order, through the deterministic preprocessing.

    Samples that cannot be decoded are left out and listed in `errors`; `Batch.ids` says which came through.

    Args:
        source: where the images come from.
        preprocessing: resize, crop, channels and normalisation.
        batch_size: samples in a batch; the last may be smaller.
        num_workers: processes that decode ahead; 0 does it in this one.
        errors: the list of samples that cannot be decoded.

    Raises:
        ValueError: batch_size below 1 or num_workers below 0.
    """

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        *,
        batch_size: int = 256,
        num_workers: int = 0,
        errors: ErrorLog,
    ) -> None:
        _check_workers(num_workers)
        if batch_size < 1:
            raise ValueError(f"EvalStream: batch_size must be at least 1, got {batch_size}.")
        self.source, self.preprocessing, self.errors = source, preprocessing, errors
        self.batch_size, self.num_workers = batch_size, num_workers

    def __len__(self) -> int:
        """Number of batches if every sample can be decoded."""
        return -(-len(self.source) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        starts = range(0, len(self.source), self.batch_size)
        wanted = (range(start, min(start + self.batch_size, len(self.source))) for start in starts)
        samples = _JudgedSamples(self.source, self.preprocessing)
        for raw in _load(samples, wanted, self.num_workers, torch.device("cpu")):
            for error in raw.errors:
                self.errors.add(*error)
            if len(raw.ids):
                yield Batch((_normalise(raw.crops[0][0], self.preprocessing),), raw.ids, raw.labels)


def read_input(source: Source, index: int, preprocessing: Preprocessing) -> Tensor:
    """What judging and deployment feed the encoder for one sample.

    Args:
        source: images or videos.
        index: the sample.
        preprocessing: what the sample goes through; with num_frames set, the source holds videos.

    Returns:
        float `[c, h, w]` of an image, `[c, t, h, w]` of a video's middle clip (see `middle_clip`).

    Raises:
        DecodeError: the sample cannot be decoded.
    """
    return _normalise(_read_pixels(source, index, preprocessing)[None], preprocessing)[0]


def _read_pixels(source: Source, index: int, preprocessing: Preprocessing) -> Tensor:
    if preprocessing.num_frames is not None:
        return middle_clip(cast(VideoSource, source), index, preprocessing)
    return preprocessing.resize([cast(ImageSource, source).read(index)])[0]


def _normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    if preprocessing.num_frames is None:
        return preprocessing.normalise(pixels)
    return preprocessing.normalise_clips(pixels)


class _TrainingSamples(Dataset[_Raw]):
    def __init__(self, source: Source, transform: ViewTransform, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed
        self._takes_clips = isinstance(transform, ReadingTransform)

    def __getitem__(self, keys: BatchKeys) -> _Raw:
        errors: list[tuple[int, str, str]] = []
        read = [
            self._read(epoch, index, top, errors)
            for epoch, index, top in zip(keys.epochs, keys.indices, self._tops(keys))
        ]
        samples = np.asarray([index for _, index in read], dtype=np.int64)
        found = [each for each, _ in read]
        if self._takes_clips:
            crops = tuple(torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        else:
            crops = self.transform.crop(found, _sample_keys(self.seed, keys.epochs, samples))
        return _Raw(crops, torch.from_numpy(samples), _labels(self.source, samples), tuple(errors), keys)

    def _tops(self, keys: BatchKeys) -> list[TopRows | None]:
        # The crops of an image whose size is known, before it is decoded; `crop` draws the same ones after.
        tops: list[TopRows | None] = [None] * len(keys.indices)
        if isinstance(self.source, PartialSource) and isinstance(self.transform, CroppingTransform):
            samples = np.asarray(keys.indices, dtype=np.int64)
            sizes = self.source.known_sizes(samples)
            rows = self.transform.rows_needed(sizes, _sample_keys(self.seed, keys.epochs, samples))
            for place in np.flatnonzero(sizes[:, 0]):
                height, width = sizes[place].tolist()
                tops[place] = TopRows((height, width), int(rows[place]))
        return tops

    def _read(
        self, epoch: int, index: int, top: TopRows | None, errors: list[tuple[int, str, str]]
    ) -> tuple[Any, int]:
        wanted = index
        for attempt in range(_REPLACEMENTS):
            try:
                return self._read_one(epoch, wanted, top), wanted
            except DecodeError as error:
                errors.append((wanted, self.source.name(wanted), str(error)))
            top = None
            draw = uniforms(self.seed, "replacement", epoch, attempt, ids=[index], num=1)[0, 0]
            wanted = int(draw * len(self.source))
        raise DataError(
            f"{self.source.name(index)} cannot be decoded ({errors[0][2]}), nor can {_REPLACEMENTS - 1} "
            "samples drawn in its place. Check that the files are what they are taken for."
        )

    def _read_one(self, epoch: int, index: int, top: TopRows | None) -> Any:
        if self._takes_clips:
            keys = _sample_keys(self.seed, (epoch,), np.asarray([index]))
            return cast(ReadingTransform, self.transform).read(cast(VideoSource, self.source), index, keys)
        if top is not None:
            return cast(PartialSource, self.source).read_top(index, top)
        return cast(ImageSource, self.source).read(index)


class _JudgedSamples(Dataset[_Raw]):
    def __init__(self, source: Source, preprocessing: Preprocessing) -> None:
        self.source, self.preprocessing = source, preprocessing

    def __getitem__(self, indices: Sequence[int]) -> _Raw:
        images, ids, errors = [], [], []
        for index in indices:
            try:
                images.append(_read_pixels(self.source, index, self.preprocessing))
                ids.append(index)
            except DecodeError as error:
                errors.append((index, self.source.name(index), str(error)))
        samples = np.asarray(ids, dtype=np.int64)
        crops = torch.stack(images)[None] if images else torch.empty(1, 0)
        return _Raw((crops,), torch.from_numpy(samples), _labels(self.source, samples), tuple(errors), None)


class _Guarded(Dataset["_Raw | _Failure"]):
    # In a worker a failure becomes a value: raised there, torch would wrap its message in two tracebacks.
    def __init__(self, samples: Dataset[_Raw]) -> None:
        self.samples = samples

    def __getitem__(self, item: object) -> _Raw | _Failure:
        try:
            return self.samples[item]
        except (DataError, ValueError) as error:
            return _Failure(str(error), None)
        except Exception as error:
            return _Failure(f"{type(error).__name__}: {error}", traceback.format_exc())


def _load(
    samples: Dataset[_Raw], items: Iterable[object], num_workers: int, device: torch.device
) -> Iterator[_Raw]:
    if num_workers == 0:
        for item in items:
            yield samples[item]
        return
    loader = DataLoader(
        _Guarded(samples),
        batch_size=None,
        sampler=items,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        worker_init_fn=_start_worker,
        # Forked workers share what is in memory; elsewhere fork is missing, or unsafe in the system's
        # libraries.
        multiprocessing_context="fork" if sys.platform == "linux" else None,
        pin_memory=device.type == "cuda",
        # Without its own, torch's global generator is drawn from, and a worker would change the run.
        generator=torch.Generator(),
    )
    iterator = iter(loader)
    try:
        while (raw := _next(iterator)) is not None:
            if isinstance(raw, _Failure):
                raise _failed(raw)
            yield raw
    finally:
        del iterator  # ends the workers, also while the traceback of an error keeps this frame


def _next(iterator: Iterator[_Raw | _Failure]) -> _Raw | _Failure | None:
    try:
        return next(iterator, None)
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise WorkerKilledError(
            "A data worker was killed, most often because memory or shared memory (/dev/shm) ran out: "
            "use fewer workers or a smaller batch."
        ) from error


def _failed(failure: _Failure) -> Exception:
    if failure.details is None:
        return DataError(failure.message)
    error = RuntimeError(f"a data worker failed: {failure.message}")
    error.add_note(failure.details)
    return error


def _start_worker(_: int) -> None:
    # Ctrl-C, and the SIGTERM of timeout, systemd or SLURM, reach the whole process group, but the parent decides
    # when its workers end: it still needs them for the step at hand. One that hangs is gone after 30 seconds.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(30))


def _as_it_is(item: Any) -> Any:
    return item


def _sample_keys(seed: int, epochs: Sequence[int], ids: NDArray[np.int64]) -> SampleKeys:
    return SampleKeys(seed, np.asarray(epochs, dtype=np.int64), ids)


def _labels(source: Source, ids: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(source.labels[ids])


def _check_workers(num_workers: int) -> None:
    if num_workers < 0:
        raise ValueError(f"num_workers must be at least 0, got {num_workers}.")

"""Features of images and videos, from files or from memory, by a loaded encoder."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, Unpack

import torch
from torch import Tensor, nn

from torchjepa.data import ErrorLog, Preprocessing
from torchjepa.engine import resolve_precision
from torchjepa.hub.samples import Reader, Sample, count
from torchjepa.models.encoding import evaluation_mode
from torchjepa.nn import AttentiveClassifier, AttentivePooler, pool_by_name

if TYPE_CHECKING:
    from torchjepa.hub.encoder import LoadedEncoder
    from torchjepa.hub.load import Pretrained

    Model: TypeAlias = Pretrained | LoadedEncoder

Pool = str | Callable[[Tensor], Tensor]
Precision = Literal["32", "bf16-mixed"]
_TOKENS_AT_ONCE = 8192  # 32 images of 256 tokens


@dataclass(frozen=True)
class Encoded:
    """Features of some inputs, on the CPU.

    Args:
        features: float32 `[n, d]`; tokens `[n, num_tokens, d]` with `pool="none"`.
        names: the input that each row is of: its file, or its number; once for each window of a video.
        seconds: when the first and the last frame of each row's clip appear, float64 `[n, 2]`; NaN where the frames
            come from memory, `None` where no row is of a video's file.
        layers: the same of each block asked for, by name: `{"block_3": [n, d], ...}`.
    """

    features: Tensor
    names: tuple[str, ...]
    seconds: Tensor | None = None
    layers: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)


class EncodeOptions(TypedDict, total=False):
    """How `encode` works; each of these may be left out or be `None`."""

    pool: Pool | None
    """`mean` or `mean_max` over the tokens; `none` keeps them; `attentive` takes the probe that was loaded beside the
    encoder; or a function (a probe) of tokens `[b, n, d]`. The model's own by default."""
    layers: Sequence[int] | None
    """Blocks whose outputs are wanted too, negative ones from the end, after the network's last layer norm, as the
    official evaluation takes them."""
    batch_size: int | None
    """Inputs encoded together; by default as many as make 8,192 tokens, 32 images of 256."""
    window: int | None
    """Frames of a clip, taken at the model's frame rate, for long videos: one row for each window, in memory that does
    not grow with the length. By default one clip: the middle of the video, the model's number of frames at its frame
    rate (a shorter video's last frame held); of frames in memory, all of them."""
    stride: int | None
    """Frames from the beginning of a window to that of the next, `window` by default."""
    image_size: int | None
    """Side of the squares that pictures are brought to, where not the model's own."""
    device: torch.device | str | None
    """Where to encode; the model moves there. By default where it is."""
    precision: Precision | None
    """`bf16-mixed` (bfloat16 autocast) or `32`; by default bfloat16 where the device multiplies it quickly: CUDA from
    Ampere on, CPUs with instructions for it (AMX, AVX-512 BF16)."""
    progress: bool | None
    """Whether to show a progress bar; by default on a terminal."""


def encode(pretrained: Model, inputs: Any, **options: Unpack[EncodeOptions]) -> Encoded:
    """Features of images or videos: pool(encoder(preprocessing(x))), batch by batch, without gradients.

    Pictures and videos go through the model's preprocessing; a picture that meets a video encoder becomes a still
    clip. Tensors of floats are taken as they are, in any size that the patch divides.

    Args:
        pretrained: what `torchjepa.load` or `load_encoder` gave.
        inputs: a file; a folder, whose videos (or images, where it has none or the encoder takes images) are taken at
            any depth; an image of Pillow's; an array `[h, w]`, `[h, w, c]` or `[t, h, w, c]`, or several along one
            more axis in front: uint8, uint16 or floats in [0, 1]; a tensor of whole numbers, the same with channels
            before height and width, as decoders give; a tensor of floats `[c, ...]` or `[b, c, ...]`, normalised; a
            set of images of `torchjepa.data`; or a list of any of these.
        options: see `EncodeOptions`.

    Returns:
        The features, and whose they are.

    Raises:
        ValueError: an input of no known kind, a file that cannot be decoded, a size that the patch does not divide,
            a pool, layer or option that there is not, or features of several shapes with `pool="none"`.
    """
    return _join(list(stream_encoded(pretrained, inputs, **options)))


def stream_encoded(
    pretrained: Model,
    inputs: Any,
    *,
    errors: ErrorLog | None = None,
    **options: Unpack[EncodeOptions],
) -> Iterator[Encoded]:
    """`encode` batch by batch: memory holds one batch, however many the inputs and however long the videos.

    Args:
        pretrained: what `torchjepa.load` or `load_encoder` gave.
        inputs: see `encode`.
        errors: where files that cannot be decoded are listed and left out; `None` makes them errors.
        options: see `EncodeOptions`.

    Yields:
        The features of one batch, of inputs of one size.

    Raises:
        ValueError: as `encode`, but for features of several shapes.
    """
    _check(options)
    model, preprocessing = pretrained.model, pretrained.preprocessing
    if (side := options.get("image_size")) is not None and preprocessing is not None:
        preprocessing = replace(preprocessing, image_size=side)
    num_axes = num_input_axes(model, preprocessing)
    reader = Reader(preprocessing, num_axes, options.get("window"), options.get("stride"), errors)
    if (device := options.get("device")) is not None:
        model.to(device)
    network = _Network(pretrained, options.get("pool"), options.get("layers"), options.get("precision"))
    progress = options.get("progress")
    samples = reader.samples(inputs)
    if sys.stderr.isatty() if progress is None else progress:
        samples = _shown(samples, count(inputs, num_axes))
    return _stream(network, samples, preprocessing, options.get("batch_size"))


class _Network:
    """The encoder with its pooling: from samples on the CPU to features on the CPU."""

    def __init__(
        self,
        pretrained: Model,
        pool: Pool | None,
        layers: Sequence[int] | None,
        precision: str | None,
    ) -> None:
        self.model, self.layers = pretrained.model, layers
        self.device, self.dtype = _place(self.model)
        self.pool = _find_pool(pretrained, pretrained.pool if pool is None else pool, self.device)
        self.rounds = resolve_precision(precision or "auto", self.device.type) == "bf16-mixed"

    def num_together(self, sample: Sample) -> int:
        """How many inputs like this one make a batch."""
        shape = sample.pixels.shape
        grid: Any = getattr(self.model, "grid", None)
        if grid is None:
            return 32
        return max(
            1,
            _TOKENS_AT_ONCE
            // grid(shape[1:] if sample.pixels.is_floating_point() else shape[:-1]).num_tokens,
        )

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Features of inputs `[b, c, ...]`, and of the layers asked for."""
        x = x.to(self.device, self.dtype, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16) if self.rounds else nullcontext():
            if self.layers is None:
                tokens, found = self.model(x), {}
            else:
                tokens, found = self.model(x, return_intermediates=self.layers)
            pooled = {name: self._pooled(self._normed(name, part)) for name, part in found.items()}
            return self._pooled(tokens), pooled

    def _normed(self, name: str, tokens: Tensor) -> Tensor:
        norm = getattr(self.model, "norm", None)
        return norm(tokens) if name.startswith("block_") and norm is not None else tokens

    def _pooled(self, tokens: Tensor) -> Tensor:
        if self.pool is None:
            return tokens.float().cpu()
        return self.pool(tokens.float()).float().cpu()


def _stream(
    network: _Network, samples: Iterable[Sample], preprocessing: Preprocessing | None, batch_size: int | None
) -> Iterator[Encoded]:
    with evaluation_mode(network.model):
        for batch in _batches(samples, network, batch_size):
            features, layers = network(_inputs([sample.pixels for sample in batch], preprocessing))
            yield Encoded(features, tuple(sample.name for sample in batch), _seconds(batch), layers)


def _batches(samples: Iterable[Sample], network: _Network, batch_size: int | None) -> Iterator[list[Sample]]:
    """Neighbours of one shape, together."""
    batch: list[Sample] = []
    most = 0
    for sample in samples:
        if batch and (_kind(sample) != _kind(batch[0]) or len(batch) == most):
            yield batch
            batch = []
        if not batch:
            most = batch_size or network.num_together(sample)
        batch.append(sample)
    if batch:
        yield batch


def _kind(sample: Sample) -> tuple[torch.dtype, torch.Size]:
    return sample.pixels.dtype, sample.pixels.shape


def _check(options: EncodeOptions) -> None:
    known = list(EncodeOptions.__annotations__)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"encode: there is no option {name!r}.{hint} There are {', '.join(known)}.")
    if (size := options.get("batch_size")) is not None and size < 1:
        raise ValueError(f"encode: batch_size must be at least 1, got {size}.")
    if (precision := options.get("precision")) not in (None, "32", "bf16-mixed"):
        raise ValueError(f"encode: precision must be '32', 'bf16-mixed' or None, got {precision!r}.")


def _inputs(pixels: list[Tensor], preprocessing: Preprocessing | None) -> Tensor:
    stacked = torch.stack(pixels)
    if stacked.is_floating_point():
        return stacked
    assert preprocessing is not None
    return preprocessing.normalise(stacked) if stacked.ndim == 4 else preprocessing.normalise_clips(stacked)


def _seconds(batch: list[Sample]) -> Tensor | None:
    if all(sample.seconds is None for sample in batch):
        return None
    return torch.tensor([sample.seconds or (float("nan"),) * 2 for sample in batch], dtype=torch.float64)


def _shown(samples: Iterator[Sample], total: int | None) -> Iterator[Sample]:
    """The samples, with a progress bar that counts inputs and says how far into a video the last window is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    place = TextColumn("{task.fields[place]}")
    columns = TextColumn("Encoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), place
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task, last = bar.add_task("Encoding", total=total, place=""), None
        for sample in samples:
            if last is not None and sample.name != last:
                bar.advance(task)
            last = sample.name
            if sample.seconds is not None:
                bar.update(task, place=f"{last} {timedelta(seconds=int(sample.seconds[1]))}")
            yield sample


def num_input_axes(model: nn.Module, preprocessing: Preprocessing | None) -> int:
    """How many axes an input of this network has behind its channels: 3 for clips, 2 for images.

    Args:
        model: the network; `patch_size` says it, where it has one.
        preprocessing: else clips have frames.
    """
    patch: Any = getattr(model, "patch_size", None)
    if patch is not None:
        return len(patch)
    return 3 if preprocessing is not None and preprocessing.num_frames else 2


def _place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    weight = next(model.parameters(), torch.empty(0))
    return weight.device, weight.dtype


def _find_pool(pretrained: Model, pool: Pool, device: torch.device) -> Callable[[Tensor], Tensor] | None:
    if isinstance(pool, nn.Module):
        return pool.eval().to(device)
    if callable(pool):
        return pool
    if pool == "none":
        return None
    if pool != "attentive":
        return pool_by_name(pool)
    for part in pretrained.parts.values():
        if isinstance(part, AttentiveClassifier | AttentivePooler):
            pooler = (part.pooler if isinstance(part, AttentiveClassifier) else part).eval().to(device)
            return lambda tokens: pooler(tokens).flatten(1)
    raise ValueError(
        f"encode: pool='attentive' needs a probe, and only {', '.join(pretrained.parts)} was loaded; load the probe's "
        "file and pass pool=torchjepa.load(file, 'classifier').model.pooler."
    )


def _join(chunks: list[Encoded]) -> Encoded:
    if not chunks:
        raise ValueError("encode: there is nothing to encode; the inputs are empty.")
    shapes = {tuple(chunk.features.shape[1:]) for chunk in chunks}
    if len(shapes) > 1:
        raise ValueError(
            f"encode: inputs of different sizes give features of different shapes {sorted(shapes)}; pool them, or "
            "encode one size at a time (torchjepa.hub.stream_encoded yields them batch by batch)."
        )
    timed = any(chunk.seconds is not None for chunk in chunks)
    seconds = [_no_times(chunk) if chunk.seconds is None else chunk.seconds for chunk in chunks]
    return Encoded(
        torch.cat([chunk.features for chunk in chunks]),
        tuple(name for chunk in chunks for name in chunk.names),
        torch.cat(seconds) if timed else None,
        {name: torch.cat([chunk.layers[name] for chunk in chunks]) for name in chunks[0].layers},
    )


def _no_times(chunk: Encoded) -> Tensor:
    return torch.full((len(chunk), 2), float("nan"), dtype=torch.float64)

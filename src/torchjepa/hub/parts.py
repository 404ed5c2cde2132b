"""What can be exported of a model: a network of tensors alone, with inputs to trace and to compare it on.

Axis letter of this file: `p` steps of a rollout.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from torchjepa.data import Preprocessing
from torchjepa.hub.encoder import LoadedEncoder
from torchjepa.nn import ActionPredictor, ViT, pool_by_name
from torchjepa.rng import generator
from torchjepa.types import Grid

if TYPE_CHECKING:
    from torchjepa.hub.load import Pretrained

PARTS = ("encoder", "predictor", "rollout")
_BATCH = 3


@dataclass(frozen=True)
class Part:
    """A network to export.

    Args:
        name: `encoder`, `predictor` or `rollout`.
        network: takes the inputs in order and gives the outputs in order, nothing but tensors.
        inputs: examples to trace and to compare on, by name.
        outputs: names of what comes out.
        free: names of the axes, of each input and output, that `dynamic` leaves open.
    """

    name: str
    network: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    free: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    def shortest(self) -> dict[str, Tensor]:
        """The inputs with every free axis cut to a length of one."""
        cut = dict(self.inputs)
        for name in self.inputs:
            for axis in self.free[name]:
                cut[name] = cut[name].narrow(axis, 0, 1)
        return cut

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the network itself makes of inputs."""
        found = self.network(*inputs.values())
        return dict(zip(self.outputs, found if isinstance(found, tuple) else (found,)))


def make_part(
    source: LoadedEncoder | Pretrained, name: str, *, dynamic: bool = False, num_steps: int = 1
) -> Part:
    """The part of that name.

    `encoder`: `pixels` `[b, c, h, w]` (`[b, c, t, h, w]` of a video) to `tokens` `[b, n, d]` and, pooled as it was
    judged, `features` `[b, d']`. `predictor`: `context` `[b, n_ctx, d]`, `context_ids` `[b, n_ctx]` and
    `target_ids` `[b, m, k]` to `prediction` `[b, m, k, d]`. `rollout`: `tokens` `[b, h*w, d]` of one frame, layer
    normalised, `actions` and `states` `[b, p, ...]` to the layer-normalised `prediction` `[b, p*h*w, d]` of the
    next p frames, each of which is fed back (V-JEPA 2-AC).

    Args:
        source: a loaded model.
        name: `encoder`, `predictor` or `rollout`.
        dynamic: whether the axes that can be open are: the batch, and of the predictor the number of context
            tokens, blocks and targets. Otherwise they are those of the examples, with a batch of one.
        num_steps: p, of a rollout.

    Raises:
        ValueError: the source has no such part, or does not say which inputs it takes.
    """
    if name not in PARTS:
        raise ValueError(f"export: there is no part {name!r}; choose among {', '.join(PARTS)}.")
    make = {"encoder": _encoder, "predictor": _predictor, "rollout": _rollout}[name]
    return make(source, _BATCH if dynamic else 1, num_steps)


def input_shape(model: nn.Module, preprocessing: Preprocessing | None) -> tuple[int, ...]:
    """`(c, ...)` of the inputs that a deployed encoder meets.

    Raises:
        ValueError: neither preprocessing nor configuration say it.
    """
    config: Mapping[str, Any] = getattr(model, "config", {})
    size, channels = config.get("image_size"), config.get("in_channels", 3)
    patch = config.get("patch_size", 1)
    axes = 2 if isinstance(patch, int) else len(patch)
    if preprocessing is not None and axes - 1 == (2 if preprocessing.num_frames else 1):
        side, frames = preprocessing.image_size, preprocessing.num_frames
        return (preprocessing.num_channels, *((frames,) if frames else ()), side, side)
    if size is None:
        raise ValueError(
            "export: the source does not say which inputs it takes; save it again with a Preprocessing that has "
            "image_size (and num_frames where it takes videos)."
        )
    return (channels, *size)


def require_vit(model: nn.Module, who: str) -> ViT:
    """The model, where it is a ViT of images or videos: the one architecture that other libraries have too.

    Raises:
        ValueError: it is another.
    """
    if type(model) is not ViT or len(model.patch_size) < 2:
        what = "a ViT of sequences" if type(model) is ViT else f"a {type(model).__name__}"
        raise ValueError(
            f"export: {who} has no class for {what}; use --format safetensors, onnx or torch-export."
        )
    return model


@torch.no_grad()
def position_table(model: ViT, input_size: Sequence[int]) -> Float[Tensor, "1 n d"]:
    """The table that the model adds for inputs of this size, resized where it was trained at another."""
    table: Any = model.positions
    return table(model.grid(input_size), model.patch_embed.weight)[None]


class _Encode(nn.Module):
    def __init__(self, model: nn.Module, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.pool = model, pool

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.model(pixels)
        return tokens, self.pool(tokens)


class _Predict(nn.Module):
    def __init__(self, predictor: nn.Module, grid: Grid) -> None:
        super().__init__()
        self.predictor, self.grid = predictor, grid

    def forward(self, context: Tensor, context_ids: Tensor, target_ids: Tensor) -> Tensor:
        return self.predictor(context, context_ids, target_ids, self.grid)


class _Rollout(nn.Module):
    def __init__(self, predictor: ActionPredictor, grid: Grid, num_steps: int) -> None:
        super().__init__()
        self.predictor, self.grid, self.num_steps = predictor, grid, num_steps

    def forward(self, tokens: Tensor, actions: Tensor, states: Tensor) -> Tensor:
        frames = [tokens]
        for step in range(1, self.num_steps + 1):
            grid = Grid(t=step, h=self.grid.h, w=self.grid.w)
            found = self.predictor(torch.cat(frames, dim=1), actions[:, :step], states[:, :step], grid)
            last = found[:, -self.grid.num_tokens :]
            frames.append(F.layer_norm(last, last.shape[-1:]))
        return torch.cat(frames[1:], dim=1)


def _encoder(source: LoadedEncoder | Pretrained, batch: int, _: int) -> Part:
    shape = input_shape(source.model, source.preprocessing)
    inputs = {"pixels": _normal("pixels", batch, *shape)}
    network = _Encode(_plain(source.model), pool_by_name(source.pool)).eval()
    outputs = ("tokens", "features")
    return Part("encoder", network, inputs, outputs, _batch_free(*inputs, *outputs))


def _predictor(source: LoadedEncoder | Pretrained, batch: int, _: int) -> Part:
    predictor = _find(source, "predictor")
    if isinstance(predictor, ActionPredictor):
        raise ValueError("export: the predictor of this source is action-conditioned; export --part rollout.")
    grid = _grid(source)
    order = torch.rand(batch, grid.num_tokens, generator=generator(0, "export", "ids")).argsort(dim=1)
    num_context, num_targets = max(grid.num_tokens // 2, 1), max(grid.num_tokens // 8, 1)
    inputs = {
        "context": _normal("context", batch, num_context, predictor.encoder_dim),
        "context_ids": order[:, :num_context].sort(dim=1).values,
        "target_ids": order[:, -2 * num_targets :].unflatten(1, (2, num_targets)).sort(dim=2).values,
    }
    free = {
        "context": {0: "batch", 1: "num_context"},
        "context_ids": {0: "batch", 1: "num_context"},
        "target_ids": {0: "batch", 1: "num_blocks", 2: "num_targets"},
        "prediction": {0: "batch", 1: "num_blocks", 2: "num_targets"},
    }
    return Part("predictor", _Predict(predictor, grid).eval(), inputs, ("prediction",), free)


def _rollout(source: LoadedEncoder | Pretrained, batch: int, num_steps: int) -> Part:
    predictor = _find(source, "predictor")
    if not isinstance(predictor, ActionPredictor):
        raise ValueError(
            f"export: a rollout needs an action-conditioned predictor (V-JEPA 2-AC); this source has a "
            f"{type(predictor).__name__}. Export --part predictor."
        )
    if num_steps < 1:
        raise ValueError(f"export: num_steps must be at least 1, got {num_steps}.")
    frame = Grid(h=_grid(source).h, w=_grid(source).w)
    tokens = _normal("tokens", batch, frame.num_tokens, predictor.encoder_dim)
    inputs = {
        "tokens": F.layer_norm(tokens, tokens.shape[-1:]),
        "actions": _normal("actions", batch, num_steps, predictor.config["action_dim"]),
        "states": _normal("states", batch, num_steps, predictor.config["state_dim"]),
    }
    network = _Rollout(predictor, frame, num_steps).eval()
    return Part("rollout", network, inputs, ("prediction",), _batch_free(*inputs, "prediction"))


def _find(source: LoadedEncoder | Pretrained, name: str) -> Any:
    if name not in source.parts:
        raise ValueError(
            f"export: this source holds no {name}; it has {', '.join(source.parts) or 'the encoder alone'}."
        )
    return _plain(source.parts[name])


def _plain(network: nn.Module) -> nn.Module:
    """The network in float32 on the CPU; itself where it is."""
    if all(tensor.is_cpu and tensor.dtype == torch.float32 for tensor in network.parameters()):
        return network
    return copy.deepcopy(network).to("cpu", torch.float32)


def _grid(source: LoadedEncoder | Pretrained) -> Grid:
    grid: Any = getattr(source.model, "grid", None)
    if grid is None:
        raise ValueError("export: the source has no encoder, whose token grid a predictor needs.")
    return grid(input_shape(source.model, source.preprocessing)[1:])


def _normal(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, "export", name))


def _batch_free(*names: str) -> dict[str, dict[int, str]]:
    return {name: {0: "batch"} for name in names}

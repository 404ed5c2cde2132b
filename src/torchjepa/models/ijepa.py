"""I-JEPA: predict the target encoder's tokens of masked blocks from the visible ones (Assran et al. 2023)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from torchjepa import rng
from torchjepa.collapse import CollapseRegularizer, named_terms
from torchjepa.ema import EMA
from torchjepa.energy import EnergyFn, SmoothL1Energy
from torchjepa.models.encoding import evaluation_mode
from torchjepa.nn.pooling import MeanPool
from torchjepa.nn.predictor import Predictor
from torchjepa.types import Batch, Encoder, Grid, Loss, Masks

_DEFAULT_ENERGY = SmoothL1Energy()
_DEFAULT_EMA = EMA(0.996)
_DEFAULT_POOL = MeanPool()


class IJEPA(nn.Module):
    """The image-based joint-embedding predictive architecture, from any parts.

    L = energy(predictor(encoder(x, context), targets), sg[norm(target_encoder(x))[targets]])
        + regularizer_weight * regularizer(z_a, z_b),

    norm the layer norm over d without affine part, eps 1e-5 (as released; the prediction is not normalised),
    sg no gradient, target_encoder <- m target_encoder + (1 - m) encoder after every step.

    The regularizer sees one vector a sample from two branches: z_a the pooled context tokens, z_b the pooled
    predictions (whose gradient reaches the encoder through the predictor; the EMA target has none), or, where
    the target has a gradient (`ema=None`), the encoder's pooled tokens of the full input.

    Args:
        encoder: the context encoder, any with the ViT's call. The target encoder is a copy of it.
        predictor: maps context tokens, their ids, target ids `[b, m, k]` and the grid to `[b, m, k, d]`.
        mask: a `MaskSampler`, draws context and targets from `(grid, batch size, generator)`.
        energy: distance of predicted to actual tokens, smooth L1 with beta 1 (as released).
        ema: moves the target encoder; momentum 0.996 throughout by default. As released it rises linearly to
            1: `EMA(0.996, LinearMomentumSchedule(0.996, total_steps=...))`. `EMA(0.0)` is a target that is
            the encoder itself without gradient. `None` is one shared encoder whose targets carry gradient:
            nothing but a regularizer then keeps it from collapsing.
        regularizer: a collapse regularizer, none by default (as released).
        regularizer_weight: its weight beside the energy, 1.
        regularizer_pool: tokens `[b, n, d]` to `[b, d']`, the mean by default; also gives the features of
            `Loss.features`.
        normalize_targets: whether targets are layer-normalised, true (as released).
        seed: seed of the masks, which are a function of it and the step.

    Attributes:
        encoder: the context encoder.
        predictor: the predictor.
        target_encoder: the target encoder, in the state dict only where there is an EMA.

    Raises:
        ValueError: the encoder is not an `nn.Module`, the predictor is made for another dimension, or the
            regularizer's weight is negative.
    """

    def __init__(
        self,
        encoder: Encoder,
        predictor: nn.Module,
        *,
        mask: Callable[[Grid, int, torch.Generator], Masks],
        energy: EnergyFn = _DEFAULT_ENERGY,
        ema: EMA | None = _DEFAULT_EMA,
        regularizer: CollapseRegularizer | None = None,
        regularizer_weight: float = 1.0,
        regularizer_pool: Callable[[Tensor], Tensor] = _DEFAULT_POOL,
        normalize_targets: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise ValueError(f"IJEPA: encoder must be an nn.Module, got {type(encoder).__name__}.")
        if isinstance(predictor, Predictor) and predictor.encoder_dim != encoder.embed_dim:
            raise ValueError(
                f"IJEPA: the predictor takes tokens of {predictor.encoder_dim} channels, the encoder gives "
                f"{encoder.embed_dim}; build it with encoder_dim={encoder.embed_dim}."
            )
        if regularizer_weight < 0:
            raise ValueError(
                f"IJEPA: regularizer_weight must not be negative, got {regularizer_weight}; it would reward "
                f"collapse."
            )
        self.encoder = encoder
        self.predictor = predictor
        if ema is not None:
            self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.mask = mask
        self.energy = energy
        self.ema = ema
        self.regularizer = regularizer
        self.regularizer_weight = regularizer_weight
        self.regularizer_pool = regularizer_pool
        self.normalize_targets = normalize_targets
        self.seed = seed

    def loss(self, batch: Batch, step: int) -> Loss:
        """The loss of a batch.

        Args:
            batch: its first view `[b, c, ...]` is masked.
            step: the optimizer update, from 0; with the seed it gives the masks.

        Returns:
            The total; terms `prediction` and the regularizer's, weighted, which add up to it; features
            `encoder` `[b, d]` (pooled context), `prediction` and `target` `[b * m * k, d]`.

        Raises:
            ValueError: the input does not fit the encoder, or no mask fits its grid.
        """
        x = batch.views[0]
        grid = self.encoder.grid(tuple(x.shape[2:]))
        masks = self.draw_masks(grid, batch, step).to(x.device)
        full, target = self.targets(x, masks.targets)
        context = self.encoder(x, masks.context)
        prediction = self.predictor(context, masks.context, masks.targets, grid)
        energy = self.energy(prediction, target)
        pooled = self.regularizer_pool(context)
        total, terms = energy, {"prediction": energy.detach()}
        if self.regularizer is not None:
            other = prediction.flatten(1, 2) if self.ema is not None else full
            parts = self.regularizer.compute(pooled, self.regularizer_pool(other))
            total = total + self.regularizer_weight * parts.total()
            terms |= {name: self.regularizer_weight * term for name, term in named_terms(parts).items()}
        features = {
            "encoder": pooled.detach(),
            "prediction": prediction.detach().flatten(0, 2),
            "target": target.detach().flatten(0, 2),
        }
        return Loss(total, terms, features)

    def draw_masks(self, grid: Grid, batch: Batch, step: int) -> Masks:
        """The masks of a batch, on the CPU: drawn for the step's global batch, cut to the rows at hand.

        Args:
            grid: the encoder's token grid.
            batch: says which rows of the global batch are here.
            step: the optimizer update, from 0.
        """
        return self.mask(grid, batch.num_global, rng.generator(self.seed, "mask", step))[batch.rows]

    def targets(
        self, x: Float[Tensor, "b c *axes"], ids: Int64[Tensor, "b m k"]
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m k d"]]:
        """The target encoder's tokens of the full input, and the normalised ones of the target blocks.

        Args:
            x: inputs `[b, c, ...]`.
            ids: places of the target blocks, int64 `[b, m, k]`.
        """
        with torch.set_grad_enabled(self.ema is None and torch.is_grad_enabled()):
            full = self._target_network()(x)
            rows = torch.arange(len(ids), device=ids.device)[:, None, None]
            target = full[rows, ids]
            if self.normalize_targets:
                target = F.layer_norm(target, target.shape[-1:], eps=1e-5)
        return full, target

    def after_step(self, step: int) -> None:
        """Move the target encoder towards the encoder.

        Args:
            step: the optimizer update that was made, from 0.
        """
        if self.ema is not None:
            self.ema.update_(self.target_encoder, self.encoder, step)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "b c *axes"]) -> Float[Tensor, "b n d"]:
        """Tokens of the target encoder in evaluation mode, without gradient.

        Args:
            x: inputs `[b, c, ...]`.
        """
        network = self._target_network()
        with evaluation_mode(network):
            return network(x)

    def scheduled(self, step: int) -> Mapping[str, float]:
        """The momentum of a step, where there is an EMA.

        Args:
            step: the optimizer update, from 0.
        """
        return {} if self.ema is None else {"momentum": self.ema.get_momentum(step)}

    @property
    def deployable_encoder(self) -> nn.Module:
        """The network that is judged and shipped: the target encoder, as in the paper."""
        return self._target_network()

    def _target_network(self) -> nn.Module:
        return self.encoder if self.ema is None else self.target_encoder

"""I-JEPA: predict the target encoder's tokens of masked blocks from the visible ones (Assran et al. 2023)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from torchjepa import rng
from torchjepa.collapse import CollapseRegularizer, named_terms
from torchjepa.ema import EMA
from torchjepa.energy import EnergyFn, SmoothL1Energy
from torchjepa.models.encoding import add_losses, evaluation_mode
from torchjepa.models.targets import LayerNormTargets, TargetNorm
from torchjepa.nn.pooling import MeanPool
from torchjepa.nn.predictor import Predictor
from torchjepa.types import Batch, Embedded, Encoder, Grid, Loss, Masks

_DEFAULT_ENERGY = SmoothL1Energy()
_DEFAULT_EMA = EMA(0.996)
_DEFAULT_POOL = MeanPool()
_DEFAULT_TARGET_NORM = LayerNormTargets()


class IJEPA(nn.Module):
    """The image-based joint-embedding predictive architecture, from any parts.

    L = mean over draws of energy(predictor(encoder(x, context), targets),
                                  sg[target_norm(target_encoder(x))[targets]])
        + regularizer_weight * regularizer(projector(z_a), projector(z_b)),

    sg no gradient, target_encoder <- m target_encoder + (1 - m) encoder after every step; the prediction is
    not normalised.

    The regularizer sees one vector a sample from two branches. z_a is the pooled context tokens of the first
    mask draw. z_b is, with two draws or more, those of the second: two glimpses of one picture, which a
    regularizer with an invariance term (VICReg, Barlow Twins) draws together. With one draw it is the pooled
    predictions (whose gradient reaches the encoder through the predictor; the EMA target has none), or, where
    the target has a gradient (`ema=None`), the encoder's pooled tokens of the full input. Without pooling it sees
    one view `[b, n, d]`, the encoder's tokens of the full input (with an EMA, those of the first context, whose
    positions differ from sample to sample).

    SIGReg in place of the EMA is `ema=None, regularizer=SIGReg()`: one shared encoder, no stop-gradient.

    A batch that is accumulated over micro-batches is joined before the projector: regularizer and projector (its
    batch norms too) see all of it; batch norms inside the networks and the statistics of `PositionStandardize`
    are those of one micro-batch.

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
            `Loss.features`. `None` leaves the tokens to the regularizer as one view: `SIGReg()` takes them
            position by position over the batch, `VCReg(over="time")` over the tokens of each sample.
        projector: what z_a and z_b go through before the regularizer, one after the other, `[b, d']` to
            `[b, e]` (tokens without pooling as `[b * n, d]`); trained and not deployed. None by default.
        target_norm: what is done to the target tokens `[b, n, d]` before the targets are cut from them: layer
            norm over d without affine part, eps 1e-5, by default (as released); `PositionStandardize()`
            takes what all samples share out of them; `None` leaves them as they are.
        num_mask_draws: independent masks for each sample, 1 (as released). The target encoder runs once for
            all, and contexts of equal length go through the encoder as one batch.
        seed: seed of the masks, which are a function of it and the step.

    Attributes:
        encoder: the context encoder.
        predictor: the predictor.
        projector: the projector, the identity where there is none.
        target_encoder: the target encoder, in the state dict only where there is an EMA.

    Raises:
        ValueError: the encoder is not an `nn.Module`, the predictor is made for another dimension, the
            regularizer's weight is negative, there is a projector but no regularizer, or fewer than one draw.
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
        regularizer_pool: Callable[[Tensor], Tensor] | None = _DEFAULT_POOL,
        projector: nn.Module | None = None,
        target_norm: TargetNorm | None = _DEFAULT_TARGET_NORM,
        num_mask_draws: int = 1,
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
        if projector is not None and regularizer is None:
            raise ValueError("IJEPA: a projector without a regularizer is never trained; leave it out.")
        if num_mask_draws < 1:
            raise ValueError(f"IJEPA: num_mask_draws must be at least 1, got {num_mask_draws}.")
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
        self.projector = nn.Identity() if projector is None else projector
        self.target_norm = target_norm
        self.num_mask_draws = num_mask_draws
        self.seed = seed

    def loss(self, batch: Batch, step: int) -> Loss:
        """The loss of a batch, the energy and `joint_loss` of what `embed` gives.

        Args:
            batch: its first view `[b, c, ...]` is masked.
            step: the optimizer update, from 0; with the seed it gives the masks.

        Returns:
            The total; terms `prediction` and the regularizer's, weighted, which add up to it; the features of
            `embed` and, where there is a projector, `projector` `[b, e]` of the first branch.

        Raises:
            ValueError: the input does not fit the encoder, or no mask fits its grid.
        """
        embedded = self.embed(batch, step)
        return add_losses(embedded.local, self.joint_loss(embedded.embeddings, step))

    def embed(self, batch: Batch, step: int) -> Embedded:
        """The energy of a batch, and what projector and regularizer shall see of it.

        Args:
            batch: its first view `[b, c, ...]` is masked.
            step: the optimizer update, from 0; with the seed it gives the masks.

        Returns:
            Embeddings z_a and z_b `[b, d']`, without pooling one view `[b, n, d]`, without a regularizer none;
            and the energy, with features of the first draw: `encoder` `[b, d']` (pooled context), `tokens`
            `[b, n_ctx, d]` of the context, `target_tokens` `[b, n, d]` of the full input, `prediction` and `target`
            `[b * m * k, d]`.

        Raises:
            ValueError: the input does not fit the encoder, or no mask fits its grid.
        """
        x = batch.views[0]
        grid = self.encoder.grid(tuple(x.shape[2:]))
        draws = [self.draw_masks(grid, batch, step, draw).to(x.device) for draw in range(self.num_mask_draws)]
        full, wanted = self.targets(x)
        targets = [take_blocks(wanted, masks.targets) for masks in draws]
        contexts = self._encode_contexts(x, [masks.context for masks in draws])
        predictions = [
            self.predictor(context, masks.context, masks.targets, grid)
            for context, masks in zip(contexts, draws)
        ]
        energy = torch.stack(list(map(self.energy, predictions, targets))).mean()
        pooled = (self.regularizer_pool or _DEFAULT_POOL)(contexts[0])
        features = {
            "encoder": pooled.detach(),
            "tokens": contexts[0].detach(),
            "target_tokens": full.detach(),
            "prediction": predictions[0].detach().flatten(0, 2),
            "target": targets[0].detach().flatten(0, 2),
        }
        local = Loss(energy, {"prediction": energy.detach()}, features)
        if self.regularizer is None:
            return Embedded((), local)
        if self.regularizer_pool is None:
            return Embedded((full if self.ema is None else contexts[0],), local)
        second = self.regularizer_pool(self._second_branch(contexts, predictions, full))
        return Embedded((pooled, second), local)

    def joint_loss(self, embeddings: tuple[Float[Tensor, "b *n d_in"], ...], step: int) -> Loss:
        """The weighted regularizer of projected embeddings; zero where there is no regularizer.

        Args:
            embeddings: what `embed` gave, of the whole batch.
            step: the optimizer update, from 0; nothing here depends on it.

        Raises:
            ValueError: the regularizer takes another number of views.
        """
        if self.regularizer is None:
            return Loss(next(self.parameters()).new_zeros(()))
        projected = [self._project(each) for each in embeddings]
        parts = self.regularizer.compute(*projected)
        terms = {name: self.regularizer_weight * term for name, term in named_terms(parts).items()}
        has_projector = not isinstance(self.projector, nn.Identity)
        features = {"projector": projected[0].detach().flatten(0, -2)} if has_projector else {}
        return Loss(self.regularizer_weight * parts.total(), terms, features)

    def draw_masks(self, grid: Grid, batch: Batch, step: int, draw: int = 0) -> Masks:
        """The masks of a batch, on the CPU: drawn for the step's global batch, cut to the rows at hand.

        Args:
            grid: the encoder's token grid.
            batch: says which rows of the global batch are here.
            step: the optimizer update, from 0.
            draw: which of the step's independent draws, from 0.
        """
        # The first draw's key is the step alone, so that more draws leave it as it was.
        keys = (step, draw) if draw else (step,)
        return self.mask(grid, batch.num_global, rng.generator(self.seed, "mask", *keys))[batch.rows]

    def targets(self, x: Float[Tensor, "b c *axes"]) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
        """The target encoder's tokens of the full input, as they are and as they are to be predicted.

        Args:
            x: inputs `[b, c, ...]`.
        """
        with torch.set_grad_enabled(self.ema is None and torch.is_grad_enabled()):
            full = self._target_network()(x)
            return full, full if self.target_norm is None else self.target_norm(full)

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

    def _encode_contexts(self, x: Tensor, ids: Sequence[Tensor]) -> Sequence[Tensor]:
        if len({each.shape for each in ids}) > 1 or len(ids) == 1:
            return [self.encoder(x, each) for each in ids]
        # One pass over all draws keeps the device busier than several smaller ones.
        tokens = self.encoder(x.repeat(len(ids), *[1] * (x.dim() - 1)), torch.cat(list(ids)))
        return tokens.unflatten(0, (len(ids), len(x))).unbind(0)

    def _project(self, embeddings: Tensor) -> Tensor:
        # Batch norms of a projector want rows.
        return self.projector(embeddings.flatten(0, -2)).unflatten(0, embeddings.shape[:-1])

    def _second_branch(
        self, contexts: Sequence[Tensor], predictions: Sequence[Tensor], full: Tensor
    ) -> Tensor:
        if len(contexts) > 1:
            return contexts[1]
        return full if self.ema is None else predictions[0].flatten(1, 2)


def take_blocks(tokens: Float[Tensor, "b n d"], ids: Int64[Tensor, "b m k"]) -> Float[Tensor, "b m k d"]:
    """The tokens of each sample's blocks.

    Args:
        tokens: all tokens `[b, n, d]`.
        ids: places of the blocks, int64 `[b, m, k]`.
    """
    return tokens[torch.arange(len(ids), device=ids.device)[:, None, None], ids]

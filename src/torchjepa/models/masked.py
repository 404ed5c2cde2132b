"""The masked learner: predict the target encoder's tokens of hidden places from those of visible ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from torchjepa import rng
from torchjepa.collapse import CollapseRegularizer, named_terms
from torchjepa.ema import EMA
from torchjepa.energy import EnergyFn
from torchjepa.models.encoding import add_losses, evaluation_mode
from torchjepa.models.targets import LayerNormTargets, TargetNorm
from torchjepa.nn.pooling import MeanPool
from torchjepa.nn.predictor import Predictor
from torchjepa.types import Batch, Embedded, Encoder, Grid, Loss, Masks, MaskSampler

_DEFAULT_POOL = MeanPool()
_DEFAULT_TARGET_NORM = LayerNormTargets()


class MaskedJEPA(nn.Module):
    """A masked joint-embedding predictive architecture, from any parts: I-JEPA, V-JEPA and V-JEPA 2 are such.

    L = mean over masks and draws of energy(predictor(encoder(x, context), targets),
                                            sg[target_norm(target_encoder(x))[targets]])
        + regularizer_weight * regularizer(projector(z_a), projector(z_b)),

    sg no gradient, target_encoder <- m target_encoder + (1 - m) encoder after every step; the prediction is not
    normalised. The energy is a mean over the tokens of one mask, so that masks weigh the same whatever their lengths.

    Several views of a sample are samples of their own with masks of their own. The target encoder runs once for all
    masks and draws; a ViT encodes all contexts of a sample, of any lengths, in one call with one patch embedding.

    The regularizer sees one vector a sample from two branches. z_a is the pooled tokens of the first context. z_b is,
    with two masks or draws or more, those of the second: two glimpses of one input, which a regularizer with an
    invariance term (VICReg, Barlow Twins) draws together. With one context it is the pooled predictions (whose
    gradient reaches the encoder through the predictor; the EMA target has none), or, where the target has a gradient
    (`ema=None`), the encoder's pooled tokens of the full input. Without pooling it sees one view `[b, n, d]`, the
    encoder's tokens of the full input (with an EMA, those of the first context, whose positions differ from sample to
    sample).

    SIGReg in place of the EMA is `ema=None, regularizer=SIGReg()`: one shared encoder, no stop-gradient.

    A batch that is accumulated over micro-batches is joined before the projector: regularizer and projector (its
    batch norms too) see all of it; batch norms inside the networks and the statistics of `PositionStandardize`
    are those of one micro-batch.

    Args:
        encoder: the context encoder, any with the ViT's call. The target encoder is a copy of it.
        predictor: maps context tokens, their ids, target ids `[b, m, k]` and the grid to `[b, m, k, d]`; also takes
            the index of the mask token where that is not 0.
        mask: a `MaskSampler`, draws context and targets from `(grid, batch size, generator)`; or several, each of
            which is drawn for every sample.
        energy: distance of predicted to actual tokens.
        ema: moves the target encoder. `EMA(0.0)` is a target that is the encoder itself without gradient. `None` is
            one shared encoder whose targets carry gradient: nothing but a regularizer then keeps it from collapsing.
        mask_tokens: for each mask, which of the predictor's mask tokens asks for its targets; 0 for all by default.
        target_layers: indices of the target encoder's blocks whose outputs are predicted, negative ones from the end:
            each `[b, n, d]` through `target_norm`, then side by side, `[b, n, len(target_layers) * d]` (V-JEPA 2.1);
            the predictor needs that `target_dim`. By default the encoder's output alone (all released before 2.1).
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
        num_mask_draws: independent draws of every mask for each sample, 1 (as released).
        seed: seed of the masks, which are a function of it and the step.

    Attributes:
        encoder: the context encoder.
        predictor: the predictor.
        projector: the projector, the identity where there is none.
        target_encoder: the target encoder, in the state dict only where there is an EMA.
        masks: the mask samplers.
        mask: the first of them.

    Raises:
        ValueError: the encoder is not an `nn.Module`, the predictor is made for another dimension or has no such
            mask token, there is no mask or another number of mask tokens, the regularizer's weight is negative,
            there is a projector but no regularizer, or fewer than one draw.
    """

    def __init__(
        self,
        encoder: Encoder,
        predictor: nn.Module,
        *,
        mask: MaskSampler | Sequence[MaskSampler],
        energy: EnergyFn,
        ema: EMA | None,
        mask_tokens: Sequence[int] | None = None,
        target_layers: Sequence[int] | None = None,
        regularizer: CollapseRegularizer | None = None,
        regularizer_weight: float = 1.0,
        regularizer_pool: Callable[[Tensor], Tensor] | None = _DEFAULT_POOL,
        projector: nn.Module | None = None,
        target_norm: TargetNorm | None = _DEFAULT_TARGET_NORM,
        num_mask_draws: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not isinstance(encoder, nn.Module):
            raise ValueError(f"{name}: encoder must be an nn.Module, got {type(encoder).__name__}.")
        if regularizer_weight < 0:
            raise ValueError(
                f"{name}: regularizer_weight must not be negative, got {regularizer_weight}; it would reward "
                f"collapse."
            )
        if projector is not None and regularizer is None:
            raise ValueError(f"{name}: a projector without a regularizer is never trained; leave it out.")
        if num_mask_draws < 1:
            raise ValueError(f"{name}: num_mask_draws must be at least 1, got {num_mask_draws}.")
        self.encoder = encoder
        self.predictor = predictor
        if ema is not None:
            self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.masks = tuple(mask) if isinstance(mask, Sequence) else (mask,)
        self.mask_tokens = (0,) * len(self.masks) if mask_tokens is None else tuple(mask_tokens)
        self.target_layers = None if target_layers is None else tuple(target_layers)
        self.energy = energy
        self.ema = ema
        self.regularizer = regularizer
        self.regularizer_weight = regularizer_weight
        self.regularizer_pool = regularizer_pool
        self.projector = nn.Identity() if projector is None else projector
        self.target_norm = target_norm
        self.num_mask_draws = num_mask_draws
        self.seed = seed
        _check_masks(self)
        _check_predictor(self)

    def loss(self, batch: Batch, step: int) -> Loss:
        """The loss of a batch, the energy and `joint_loss` of what `embed` gives.

        Args:
            batch: its v views, each `[b, c, ...]` and of one size, are b * v samples.
            step: the optimizer update, from 0; with the seed it gives the masks.

        Returns:
            The total; terms `prediction` and the regularizer's, weighted, which add up to it; the features of
            `embed` and, where there is a projector, `projector` `[b, e]` of the first branch.

        Raises:
            ValueError: the input does not fit the encoder, no mask fits its grid, or views of different sizes.
        """
        embedded = self.embed(batch, step)
        return add_losses(embedded.local, self.joint_loss(embedded.embeddings, step))

    def embed(self, batch: Batch, step: int) -> Embedded:
        """The energy of a batch, and what projector and regularizer shall see of it.

        Args:
            batch: its v views, each `[b, c, ...]` and of one size, are b * v samples.
            step: the optimizer update, from 0; with the seed it gives the masks.

        Returns:
            Embeddings z_a and z_b `[b * v, d']`, without pooling one view `[b * v, n, d]`, without a regularizer none;
            and the energy, with features of the first mask and draw: `encoder` `[b * v, d']` (pooled context),
            `tokens` `[b * v, n_ctx, d]` of the context, `target_tokens` `[b * v, n, d]` of the full input,
            `prediction` and `target` `[b * v * m * k, d]`.

        Raises:
            ValueError: the input does not fit the encoder, no mask fits its grid, or views of different sizes.
        """
        x = _as_samples(batch.views)
        grid = self.encoder.grid(tuple(x.shape[2:]))
        masks, tokens = self._draw_all(grid, batch, step, x.device)
        full, wanted = self.targets(x)
        targets = [take_blocks(wanted, each.targets) for each in masks]
        contexts = self._encode_contexts(x, [each.context for each in masks])
        predictions = [
            self._predict(context, each, grid, token) for context, each, token in zip(contexts, masks, tokens)
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

    def draw_masks(self, grid: Grid, batch: Batch, step: int, draw: int = 0, index: int = 0) -> Masks:
        """Masks of all views of a batch, on the CPU: drawn for the step's global batch, cut to the rows at hand.

        Args:
            grid: the encoder's token grid.
            batch: says which rows of the global batch are here, and how many views v a sample has.
            step: the optimizer update, from 0.
            draw: which of the step's independent draws, from 0.
            index: which of the masks, from 0.

        Returns:
            Masks of b * v samples, a sample's views one after the other.
        """
        # The first draw's key is the step alone, so that more draws and masks leave it as it was.
        keys = (step, draw, index) if index else (step, draw) if draw else (step,)
        num_views, rows = len(batch.views), batch.rows
        draws = rng.generator(self.seed, "mask", *keys)
        masks = self.masks[index](grid, num_views * batch.num_global, draws)
        return masks[num_views * rows.start : num_views * rows.stop]

    def targets(
        self, x: Float[Tensor, "b c *axes"]
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d_target"]]:
        """The target encoder's tokens of the full input, as they are and as they are to be predicted.

        Args:
            x: inputs `[b, c, ...]`.
        """
        with torch.set_grad_enabled(self.ema is None and torch.is_grad_enabled()):
            if self.target_layers is None:
                full = self._target_network()(x)
                return full, self._normalized(full)
            full, layers = self._target_network()(x, return_intermediates=self.target_layers)
            return full, torch.cat([self._normalized(layer) for layer in layers.values()], dim=-1)

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
    def mask(self) -> MaskSampler:
        """The first mask."""
        return self.masks[0]

    @property
    def deployable_encoder(self) -> nn.Module:
        """The network that is judged and shipped: the target encoder, as in the paper."""
        return self._target_network()

    def _target_network(self) -> nn.Module:
        return self.encoder if self.ema is None else self.target_encoder

    def _normalized(self, tokens: Tensor) -> Tensor:
        return tokens if self.target_norm is None else self.target_norm(tokens)

    def _draw_all(
        self, grid: Grid, batch: Batch, step: int, device: torch.device
    ) -> tuple[list[Masks], list[int]]:
        """All masks of all draws, and the mask token of each."""
        places = [(draw, index) for draw in range(self.num_mask_draws) for index in range(len(self.masks))]
        masks = [self.draw_masks(grid, batch, step, *place).to(device) for place in places]
        return masks, [self.mask_tokens[index] for _, index in places]

    def _encode_contexts(self, x: Tensor, ids: Sequence[Tensor]) -> Sequence[Tensor]:
        lengths = [each.shape[1] for each in ids]
        if len(ids) == 1:
            return [self.encoder(x, ids[0])]
        if len(set(lengths)) == 1:
            # One pass over all draws keeps the device busier than several smaller ones.
            tokens = self.encoder(x.repeat(len(ids), *[1] * (x.dim() - 1)), torch.cat(list(ids)))
            return tokens.unflatten(0, (len(ids), len(x))).unbind(0)
        encoder: Any = self.encoder
        if getattr(encoder, "takes_segments", False):
            return encoder(x, torch.cat(list(ids), dim=1), segments=lengths).split(lengths, dim=1)
        return [self.encoder(x, each) for each in ids]

    def _predict(self, context: Tensor, masks: Masks, grid: Grid, mask_token: int) -> Tensor:
        # A predictor with a single mask token need not know that there could be more.
        chosen = {"mask_index": mask_token} if mask_token else {}
        return self.predictor(context, masks.context, masks.targets, grid, **chosen)

    def _project(self, embeddings: Tensor) -> Tensor:
        # Batch norms of a projector want rows.
        return self.projector(embeddings.flatten(0, -2)).unflatten(0, embeddings.shape[:-1])

    def _second_branch(
        self, contexts: Sequence[Tensor], predictions: Sequence[Tensor], full: Tensor
    ) -> Tensor:
        if len(contexts) > 1:
            return contexts[1]
        return full if self.ema is None else predictions[0].flatten(1, 2)


def _check_masks(model: MaskedJEPA) -> None:
    name, num_masks = type(model).__name__, len(model.masks)
    if not num_masks:
        raise ValueError(f"{name}: mask must be a MaskSampler or several, got none.")
    if model.target_layers == ():
        raise ValueError(
            f"{name}: target_layers must name at least one block, or be None for the encoder's output."
        )
    if len(model.mask_tokens) != num_masks:
        raise ValueError(
            f"{name}: mask_tokens must name a mask token for each of the {num_masks} masks, got "
            f"{list(model.mask_tokens)}."
        )


def _check_predictor(model: MaskedJEPA) -> None:
    name, predictor, dim = type(model).__name__, model.predictor, model.encoder.embed_dim
    if not isinstance(predictor, Predictor):
        return
    if predictor.encoder_dim != dim:
        raise ValueError(
            f"{name}: the predictor takes tokens of {predictor.encoder_dim} channels, the encoder gives "
            f"{dim}; build it with encoder_dim={dim}."
        )
    wanted = dim * len(model.target_layers or [None])
    if predictor.target_dim != wanted:
        raise ValueError(
            f"{name}: the predictor predicts tokens of {predictor.target_dim} channels, the targets have {wanted}; "
            f"build it with target_dim={wanted}."
        )
    num_tokens = len(predictor.mask_token)
    if not all(0 <= index < num_tokens for index in model.mask_tokens):
        raise ValueError(
            f"{name}: mask_tokens {list(model.mask_tokens)} are not all among the predictor's {num_tokens}; build it "
            f"with num_mask_tokens={max(model.mask_tokens) + 1}."
        )


def _as_samples(views: Sequence[Tensor]) -> Tensor:
    """Views as samples of their own, `[b * v, c, ...]`, so that batches in a row are one in the same order."""
    shapes = [tuple(view.shape) for view in views]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"MaskedJEPA: the views of a batch must have one shape, got {shapes}; make clips of one length and size."
        )
    return views[0] if len(views) == 1 else torch.stack(list(views), dim=1).flatten(0, 1)


def take_blocks(tokens: Float[Tensor, "b n d"], ids: Int64[Tensor, "b m k"]) -> Float[Tensor, "b m k d"]:
    """The tokens of each sample's blocks.

    Args:
        tokens: all tokens `[b, n, d]`.
        ids: places of the blocks, int64 `[b, m, k]`.
    """
    return tokens[torch.arange(len(ids), device=ids.device)[:, None, None], ids]

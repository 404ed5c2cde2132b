"""The action-conditioned predictor of V-JEPA 2-AC: the frames so far and what was done in, the next frame out.

Axis letters of this file: `j` tokens of all frames, `e` channels of one head.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from torchjepa.nn.attention import Block, attend
from torchjepa.nn.init import FanInStd, init_transformer, rescale_depth
from torchjepa.nn.position_kinds import resolve_positions
from torchjepa.nn.rope import RotaryPositions, RotaryTables
from torchjepa.types import Grid


class ActionPredictor(nn.Module):
    """A block-causal transformer that predicts the tokens of frame t + 1 from all frames up to t (V-JEPA 2-AC).

    Each frame is the sequence [W_a action | W_s state | W_x extrinsics, if given | W_in tokens]; every token of frame
    t attends to all tokens of the frames up to t. Rotary positions turn queries and keys; those of actions, states
    and extrinsics on the temporal axis alone. The output at the tokens of frame t, normalised and mapped back to the
    encoder's dimension, is the prediction of frame t + 1.

    Args:
        encoder_dim: embedding dimension d of the tokens that come in and go out.
        action_dim: length of an action, 7 (V-JEPA 2-AC: translation, rotation, gripper).
        state_dim: length of a state, 7 (position, rotation, gripper).
        extrinsics_dim: length of a camera's extrinsics, 6; the released weights have such a layer without using it.
            `None` for a network without.
        embed_dim: the predictor's own dimension, 1024.
        depth: number of blocks, 24.
        num_heads: number of attention heads, 16.
        mlp_ratio: hidden width of the MLPs over `embed_dim`, 4.
        positions: rotary positions as in `ViT`, `"rope"`; the released weights need
            `RotaryPositions(pairing="released")`.
        init_std: standard deviation of the initial weights, 0.02; see `ViT`.
        seed: seed of the initial weights.

    Attributes:
        config: the arguments but for `init_std` and `seed`, fit for JSON.
        encoder_dim: d.

    Raises:
        ValueError: sizes that do not fit each other, or positions that are not rotary.
    """

    def __init__(
        self,
        *,
        encoder_dim: int,
        action_dim: int = 7,
        state_dim: int = 7,
        extrinsics_dim: int | None = 6,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        positions: str | RotaryPositions | Mapping[str, Any] = "rope",
        init_std: float | FanInStd = 0.02,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(
                f"ActionPredictor: depth must be at least 1, got {depth}: tokens see no action without."
            )
        rotary = _rotary(positions)
        self.encoder_dim = encoder_dim
        self._config: dict[str, Any] = {
            "encoder_dim": encoder_dim,
            "action_dim": action_dim,
            "state_dim": state_dim,
            "extrinsics_dim": extrinsics_dim,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "positions": rotary.config,
        }
        self.embed = nn.Linear(encoder_dim, embed_dim)
        self.action_embed = nn.Linear(action_dim, embed_dim)
        self.state_embed = nn.Linear(state_dim, embed_dim)
        self.extrinsics_embed = None if extrinsics_dim is None else nn.Linear(extrinsics_dim, embed_dim)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.positions = RotaryTables(embed_dim // num_heads, rotary)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.proj = nn.Linear(embed_dim, encoder_dim)
        init_transformer(self, init_std, seed, "action predictor")
        rescale_depth([block.residual_weights() for block in self.blocks])  # type: ignore[operator]

    @property
    def config(self) -> dict[str, Any]:
        """The arguments but for `init_std` and `seed`, fit for JSON; the class takes them back."""
        return copy.deepcopy(self._config)

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        actions: Float[Tensor, "b t a"],
        states: Float[Tensor, "b t s"],
        grid: Grid,
        extrinsics: Float[Tensor, "b t x"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Predict the tokens of the frame after each.

        Args:
            tokens: tokens of the frames, row-major over the grid, `[b, t*h*w, d]`; V-JEPA 2-AC layer-normalises them.
            actions: what was done at each frame `[b, t, action_dim]`.
            states: where the robot was `[b, t, state_dim]`.
            grid: the token grid; any number of frames, any size of a frame.
            extrinsics: where the camera was `[b, t, extrinsics_dim]`, one more token a frame; none when absent.

        Returns:
            `[b, t*h*w, d]`, at frame t the prediction of frame t + 1, not normalised.

        Raises:
            ValueError: inputs that do not fit the grid or the network.
        """
        self._check(tokens, actions, states, extrinsics, grid)
        told = [self.action_embed(actions), self.state_embed(states)]
        if extrinsics is not None and self.extrinsics_embed is not None:
            told.append(self.extrinsics_embed(extrinsics))
        frames = self.embed(tokens).unflatten(1, (grid.t, -1))
        x = torch.cat([torch.stack(told, dim=2), frames], dim=2).flatten(1, 2)
        ids = _places(grid, len(told), x.device)
        rotation = self.positions.rotation(grid, ids, x)
        pattern = partial(_attend_to_the_past, per_frame=x.shape[1] // grid.t)
        for block in self.blocks:
            x = block(x, rotation=rotation, pattern=pattern)
        x = x.unflatten(1, (grid.t, -1))[:, :, len(told) :].flatten(1, 2)
        return self.proj(self.norm(x))

    def _check(
        self, tokens: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None, grid: Grid
    ) -> None:
        if tokens.shape[1] != grid.num_tokens:
            raise ValueError(
                f"ActionPredictor: tokens must be [b, {grid.num_tokens}, d] on a grid of {grid.shape}, got "
                f"{tuple(tokens.shape)}; hand it the grid of these frames."
            )
        told = {"actions": (actions, self.action_embed), "states": (states, self.state_embed)}
        if extrinsics is not None:
            if self.extrinsics_embed is None:
                raise ValueError(
                    "ActionPredictor: extrinsics given to a network built with extrinsics_dim=None; leave them out, "
                    "or build it with their length."
                )
            told["extrinsics"] = (extrinsics, self.extrinsics_embed)
        for name, (values, layer) in told.items():
            if values.shape[1:] != (grid.t, layer.in_features):
                raise ValueError(
                    f"ActionPredictor: {name} must be [b, {grid.t}, {layer.in_features}], one for each frame, got "
                    f"{tuple(values.shape)}; cut them to the frames, or build the network for their length."
                )


def _rotary(positions: str | RotaryPositions | Mapping[str, Any]) -> RotaryPositions:
    resolved = resolve_positions(positions)
    if not isinstance(resolved, RotaryPositions):
        raise ValueError(
            f"ActionPredictor: positions must be rotary, got {resolved!r}; use 'rope', or "
            f"RotaryPositions(pairing='released') for the released weights."
        )
    return resolved


def _places(grid: Grid, num_told: int, device: torch.device) -> Int64[Tensor, "1 j"]:
    """Ids of all tokens, frame by frame: what is told about a frame stands at its first token, (t, 0, 0)."""
    ids = torch.arange(grid.num_tokens, device=device).view(grid.t, -1)
    return torch.cat([ids[:, :1].expand(-1, num_told), ids], dim=1).view(1, -1)


def _attend_to_the_past(
    q: Float[Tensor, "b heads j e"],
    k: Float[Tensor, "b heads j e"],
    v: Float[Tensor, "b heads j e"],
    per_frame: int,
) -> Float[Tensor, "b heads j e"]:
    """`attend` where the tokens of a frame see those of the frames up to it.

    A call for each frame: no mask of j x j to store, and none of the products that it would throw away.
    """
    frames = []
    # From the last frame to the first, each cutting what the one before it saw: the way back then pads step by step.
    for queries in reversed(q.split(per_frame, dim=2)):
        frames.append(attend(queries, k, v))
        k, v = k[:, :, :-per_frame], v[:, :, :-per_frame]
    return torch.cat(frames[::-1], dim=2)

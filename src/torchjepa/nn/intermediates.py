"""Which layers' outputs a caller asks for."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from torchjepa.nn.attention import Pattern, attend
from torchjepa.nn.rope import Rotation


def resolve_indices(kind: str, requested: Sequence[int], count: int) -> set[int]:
    """Indices from 0, with negative ones counted from the end.

    Args:
        kind: what is counted, for the message.
        requested: the indices asked for.
        count: how many there are.

    Raises:
        ValueError: there is no such layer.
    """
    for index in requested:
        if not -count <= index < count:
            raise ValueError(
                f"return_intermediates: no {index} among the {count} {kind}; choose 0 to {count - 1}."
            )
    return {index % count for index in requested}


def run_blocks(
    tokens: Float[Tensor, "b n d"],
    blocks: nn.ModuleList,
    norm: nn.Module,
    return_intermediates: Sequence[int] | None = None,
    rotation: Rotation | None = None,
    pattern: Pattern = attend,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """The body of a transformer: norm(block_L(... block_1(tokens))).

    Args:
        tokens: embedded tokens `[b, n, d]`.
        blocks: what they go through.
        norm: the last norm.
        return_intermediates: indices of blocks whose outputs are wanted too, negative ones from the end.
        rotation: rotary positions of the tokens, for every block.
        pattern: which tokens see which, in every block.

    Returns:
        Tokens `[b, n, d]`; with `return_intermediates` the pair of these and `{"block_0": [b, n, d], ...}`.

    Raises:
        ValueError: there is no such block.
    """
    wanted = resolve_indices("blocks", return_intermediates or (), len(blocks))
    intermediates = {}
    for index, block in enumerate(blocks):
        tokens = block(tokens, rotation=rotation, pattern=pattern)
        if index in wanted:
            intermediates[f"block_{index}"] = tokens
    tokens = norm(tokens)
    return tokens if return_intermediates is None else (tokens, intermediates)

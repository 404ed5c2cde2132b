"""Which layers' outputs a caller asks for."""

from __future__ import annotations

from collections.abc import Sequence


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

"""The keys that a token sees, where it does not see all of them. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Position = TypeVar("Position", int, "torch.Tensor")


def oldest_seen(position: Position, window: int, is_chunked: bool = False) -> Position:
    """Return the oldest position that a token sees; below 0 near the beginning of a sequence.

    Args:
        window: tokens that it sees at most, its own included.
        is_chunked: whether the window is the token's own chunk of a sequence cut into chunks of ``window`` tokens
            (Llama 4), instead of the last tokens (a sliding window).
    """
    return position // window * window if is_chunked else position - window + 1


def seen_keys(queries: torch.Tensor, keys: torch.Tensor, window: int | None, is_chunked: bool = False) -> torch.Tensor:
    """Return which keys each query sees, by their positions, of shapes that broadcast."""
    causal = keys <= queries
    return causal if window is None else causal & (keys >= oldest_seen(queries, window, is_chunked))

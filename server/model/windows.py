"""How far back a token sees, where it does not see everything. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Position = TypeVar("Position", int, "torch.Tensor")


def oldest_seen(position: Position, window: int, is_chunked: bool = False) -> Position:
    """The oldest position that a token sees; below 0 near the beginning of a sequence.

    Args:
        window: tokens that it sees at most, its own included.
        is_chunked: sequences are cut into chunks of so many tokens, of which each token sees its own (Llama 4); else it
            sees the last ones (a sliding window).
    """
    return position // window * window if is_chunked else position - window + 1

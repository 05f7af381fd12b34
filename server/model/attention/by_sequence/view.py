"""View: which keys the tokens of an attention module see, of their own sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class View:
    """The keys of all tokens up to its own, or of the last ones."""

    window: int | None = None  # tokens that a token sees, its own included
    sees_prompt: bool = False  # whether it sees its complete prompt besides
    keeps_all: bool = False  # whether the module keeps more of tokens than keys and values, and reads that of all

    @property
    def reach(self) -> int | None:
        """The tokens before whose keys are not read; None if all are."""
        return None if self.sees_prompt else self.window

    @property
    def group_window(self) -> int | None:
        """The window of which the KV cache keeps blocks."""
        return None if self.keeps_all else self.reach

    def oldest(self, position: int) -> int:
        """Return the oldest position whose keys a token and those after it read."""
        return 0 if self.reach is None else max(0, position - self.reach + 1)

    def num_seen(self, position: int) -> int:
        """Return how many keys a token reads, its own included."""
        return position + 1 - self.oldest(position)

    def seen(self, first: int, num_tokens: int, num_prompt: int, device: torch.device) -> torch.Tensor:
        """Return which keys each token sees of those from ``oldest(first)`` on, bool ``(tokens, keys)``.

        Args:
            first: position of the first token.
            num_prompt: tokens of the prompt.
        """
        positions = torch.arange(first, first + num_tokens, device=device)[:, None]
        keys = torch.arange(self.oldest(first), first + num_tokens, device=device)
        seen = keys <= positions
        if self.window is not None:
            near = positions - keys < self.window
            seen &= near | (keys < num_prompt) if self.sees_prompt else near
        return seen

"""The images of a prompt, before and after a model's towers have looked at them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Seen:
    """What the text's part of a model is given for a prompt with images."""

    of_tokens: Mapping[str, torch.Tensor]  # by argument, tokens first
    sparse: Mapping[str, Sequence[torch.Tensor]]  # by argument, lists of rows of some tokens
    positions: torch.Tensor | None  # (axes, tokens); None where they are the tokens' places

    @property
    def shift(self) -> int:
        """How far the positions of what follows the prompt are from their places."""
        return 0 if self.positions is None else int(self.positions.max()) + 1 - self.positions.shape[1]


@dataclass(eq=False)
class PromptMedia:
    """The images of one prompt, for all sequences that begin with it."""

    token_ids: Sequence[int]  # of the prompt, with as many placeholders as an image has tokens
    inputs: Mapping[str, torch.Tensor | list[Any]]  # what the processor made of the images
    wholes: Sequence[tuple[int, int]] = ()  # first and last (exclusive) of tokens that see each other through windows
    seen: Seen | None = None  # once the towers have run
    on_seen: Callable[[], object] = lambda: None  # is called then

    @property
    def num_input_bytes(self) -> int:
        """Bytes of all tensors that the processor made."""
        return sum(value.nbytes for value in self.inputs.values() if isinstance(value, torch.Tensor))

    def keep(self, seen: Seen) -> None:
        """Keep what the towers gave, and no more what they were given."""
        self.seen, self.inputs = seen, {}
        self.on_seen()

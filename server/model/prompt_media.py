"""The images of a prompt, before and after the model's vision towers embed them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class TextInputs:
    """The inputs of a model's text part for one prompt with images."""

    per_token: Mapping[str, torch.Tensor]  # by argument, (tokens, ...)
    sparse: Mapping[str, Sequence[torch.Tensor]]  # by argument, lists of rows for the tokens that a mask selects
    positions: torch.Tensor | None  # (axes, tokens); None if they are the token's index

    @property
    def position_offset(self) -> int:
        """The difference between position and index of a token that follows the prompt."""
        return 0 if self.positions is None else int(self.positions.max()) + 1 - self.positions.shape[1]


def do_nothing() -> None:
    """Do nothing."""


@dataclass(eq=False)
class PromptMedia:
    """The images of one prompt, shared by all sequences that begin with it."""

    token_ids: Sequence[int]  # the prompt, with as many placeholders as each image has tokens
    inputs: Mapping[str, torch.Tensor | list[Any]]  # the processor's output, for the vision towers
    bidirectional_spans: Sequence[tuple[int, int]] = ()  # first and last (exclusive) token, despite sliding windows
    text_inputs: TextInputs | None = None  # set once the towers have run
    on_embedded: Callable[[], object] = do_nothing  # called at that moment, in this process alone

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"on_embedded": do_nothing}

    @property
    def num_input_bytes(self) -> int:
        """Bytes of all tensors that the processor made."""
        return sum(value.nbytes for value in self.inputs.values() if isinstance(value, torch.Tensor))

    def keep(self, text_inputs: TextInputs) -> None:
        """Keep the towers' output and drop their input."""
        self.text_inputs, self.inputs = text_inputs, {}
        self.on_embedded()

"""The interface of all routers, and the dispatches that they return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class TokenDispatch:
    """Rows for experts that are single tokens, and the way from the experts' outputs back to tokens.

    Attributes:
        experts: int64 ``(rows,)``, the expert of each row.
        tokens: int64 ``(rows,)``, the token of each row.
        weights: float32 ``(rows,)``, the factor of each row's output.
        scores: float32 ``(tokens, experts)``, the softmax of ``logits``, which balance losses use.
        logits: float32 ``(tokens, experts)``.
        dropped: bool ``(tokens,)``, tokens that no expert took.
    """

    experts: torch.Tensor
    tokens: torch.Tensor
    weights: torch.Tensor
    scores: torch.Tensor
    logits: torch.Tensor
    dropped: torch.Tensor

    def rows(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the inputs of experts: ``(tokens, hidden)`` to ``(rows, hidden)``."""
        return hidden_states[self.tokens]

    def combine(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return weighted sums of the experts' outputs: ``(rows, hidden)`` to ``(tokens, hidden)``."""
        weighted = outputs * self.weights.to(outputs.dtype).unsqueeze(-1)
        return outputs.new_zeros(len(self.dropped), outputs.shape[-1]).index_add(0, self.tokens, weighted)


@dataclass(frozen=True)
class SlotDispatch:
    """Rows for experts that are slots, each a mixture of all tokens, and the way back to tokens.

    Attributes:
        experts: int64 ``(slots,)``, the expert of each slot.
        mixtures: ``(slots, tokens)``, the weights of the tokens in each slot.
        weights: float32 ``(tokens, slots)``, the weights of the slots' outputs in each token.
        scores: float32 ``(tokens, slots)``, the softmax of ``logits`` over the slots.
        logits: float32 ``(tokens, slots)``.
        dropped: bool ``(tokens,)``, all False.
    """

    experts: torch.Tensor
    mixtures: torch.Tensor
    weights: torch.Tensor
    scores: torch.Tensor
    logits: torch.Tensor
    dropped: torch.Tensor

    def rows(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the inputs of experts: ``(tokens, hidden)`` to ``(slots, hidden)``."""
        return self.mixtures.to(hidden_states.dtype) @ hidden_states

    def combine(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return weighted sums of the experts' outputs: ``(slots, hidden)`` to ``(tokens, hidden)``."""
        return self.weights.to(outputs.dtype) @ outputs


Dispatch = TokenDispatch | SlotDispatch


class Router(nn.Module, ABC):
    """Base of all routers. Logits and weights are computed in float32.

    A router sees one group of tokens at a time. Which tokens form a group (a sequence, or all tokens of a batch) is the
    caller's choice; results depend on it for every router whose ``is_independent`` is False.

    Args:
        hidden_size: width of a token.
        num_logits: logits of a token: experts, or slots of all experts.
    """

    def __init__(self, hidden_size: int, num_logits: int, num_experts: int):
        super().__init__()
        self.num_experts = num_experts
        self.gate = nn.Linear(hidden_size, num_logits, bias=False)

    @property
    @abstractmethod
    def is_causal(self) -> bool:
        """True if a token's result does not depend on later tokens."""

    @property
    @abstractmethod
    def is_independent(self) -> bool:
        """True if a token's result does not depend on any other token."""

    @property
    @abstractmethod
    def may_drop(self) -> bool:
        """True if some tokens may go to no expert."""

    @abstractmethod
    def max_experts(self, num_tokens: int) -> int:
        """Return how many experts a group of tokens touches at most."""

    @abstractmethod
    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> Dispatch:
        """Route a group of tokens.

        Args:
            hidden_states: ``(tokens, hidden)``.
            mask: bool ``(tokens,)``; False for padding, which takes no room and gets zeros.
        """

    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return float32 logits: ``(tokens, hidden)`` to ``(tokens, num_logits)``."""
        return nn.functional.linear(hidden_states.float(), self.gate.weight.float())

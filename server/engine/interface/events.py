"""Events of a request, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from server.model.step import RoutedExperts


class FinishReason(StrEnum):
    """Reason why a sequence ended, as OpenAI names it."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class TokenLogprobs:
    """Log probability of a token in the model's own distribution, before penalties and temperature."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # the most likely tokens and their logprobs, most likely first
    text_offset: int = 0  # characters of the completion before the token; 0 for a token of the prompt


@dataclass(frozen=True)
class ExpertUsage:
    """Cost of the experts that a request's own tokens were routed to, over all steps."""

    num_requests: int = 0  # expert look-ups, each expert once a layer and step
    num_misses: int = 0  # look-ups of experts that were in no tier of memory
    bytes_read: int = 0  # bytes of the misses, read from disk
    stall_seconds: float = 0.0  # waits in layers, including those for experts of other sequences in the batch

    def __add__(self, other: ExpertUsage) -> ExpertUsage:
        return ExpertUsage(
            self.num_requests + other.num_requests,
            self.num_misses + other.num_misses,
            self.bytes_read + other.bytes_read,
            self.stall_seconds + other.stall_seconds,
        )

    def __sub__(self, other: ExpertUsage) -> ExpertUsage:
        return ExpertUsage(
            self.num_requests - other.num_requests,
            self.num_misses - other.num_misses,
            self.bytes_read - other.bytes_read,
            self.stall_seconds - other.stall_seconds,
        )


@dataclass(frozen=True)
class TokenEvent:
    """One step of a stream: new text, which is empty while a character or stop string is incomplete."""

    text: str
    num_generated: int  # tokens so far, including one that stops the sequence
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()  # the new tokens, even if their text is held back
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None  # all prompt tokens but the first, in the first event
    stop: str | None = None  # the stop string that ended the text
    experts: RoutedExperts | None = None  # experts of the token before the new one, if requested
    expert_usage: ExpertUsage | None = None  # in the last event
    embedding: npt.NDArray[np.float32] | None = None  # (hidden,), in the only event of a pooled prompt
    token_id: int | None = None  # the new token; None if there is none
    adapters: Mapping[str, float] | None = None  # their factors for the token before the new one, if requested

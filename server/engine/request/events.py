"""What becomes of a request, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt


class FinishReason(StrEnum):
    """Why a sequence ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class TokenLogprobs:
    """How likely a token was in the model's own distribution, before penalties and temperature."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens and their logprobs, likeliest first
    text_offset: int = 0  # characters of the completion before the token; 0 for a token of the prompt


@dataclass(frozen=True)
class ExpertUsage:
    """What the experts that a request's own tokens went to have cost, over all steps."""

    num_requests: int = 0  # experts asked for, each once a layer and step
    num_misses: int = 0  # of these, the ones that were in no tier of memory
    bytes_read: int = 0  # from disk, of those
    stall_seconds: float = 0.0  # that it waited in layers, also for others' experts

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


Chosen = npt.NDArray[np.int16]  # (MoE layers in the order in which they run, k): the experts of a token, -1 for none


@dataclass(frozen=True)
class TokenEvent:
    """One step of a stream: new text (perhaps empty, while a character or stop string is incomplete)."""

    text: str
    num_generated: int  # tokens generated so far, the one that stopped it included
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()  # of the new tokens, also of those whose text is held back
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None  # with the first event: of all prompt tokens but the first
    stop: str | None = None  # the stop string that has ended the text
    experts: Chosen | None = None  # that the token went to which the new one follows, if they are asked for
    expert_usage: ExpertUsage | None = None  # with the last event
    embedding: npt.NDArray[np.float32] | None = None  # (hidden,), with the only event of a prompt that was pooled

"""How far requests are that have not ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .events import ExpertUsage

RequestState = Literal["waiting", "prefill", "decode", "held"]  # held: it decodes, and waits for its turn on stage


@dataclass(frozen=True)
class RequestStatus:
    """Of one request; ``waiting`` with tokens generated is one that was preempted."""

    request_id: str
    state: RequestState
    priority: int
    num_prompt_tokens: int
    num_cached_tokens: int  # of prompt and completion, that the KV cache holds
    num_generated: int
    max_tokens: int
    num_preemptions: int
    age_seconds: float  # since it was submitted
    queue_seconds: float  # until its first step, or now
    expert_usage: ExpertUsage  # so far

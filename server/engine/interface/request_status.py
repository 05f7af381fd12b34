"""Progress of requests that have not ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from server.engine.interface.events import ExpertUsage

RequestState = Literal["waiting", "prefill", "decode", "held"]  # held: decoding, but waiting for its slice


@dataclass(frozen=True)
class RequestStatus:
    """Progress of one request. One that is ``waiting`` and has generated tokens was preempted."""

    request_id: str
    state: RequestState
    priority: int
    num_prompt_tokens: int
    num_cached_tokens: int  # tokens of prompt and completion in the KV cache
    num_generated: int
    max_tokens: int
    num_preemptions: int
    age_seconds: float  # since it was submitted
    queue_seconds: float  # until its first step, or now
    expert_usage: ExpertUsage  # cost of its experts so far

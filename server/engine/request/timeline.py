"""When what became of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.model.stalls import Stall

from .events import ExpertUsage


@dataclass
class Timeline:
    """Of one request, in seconds of ``time.monotonic``; None has not come. The engine's thread writes it."""

    submitted_at: float
    started_at: float | None = None  # its first step began
    first_token_at: float | None = None
    last_token_at: float | None = None
    ended_at: float | None = None  # by ``stop`` or ``length``
    num_cached_tokens: int = 0  # of its prompt, that were in the KV cache when it began
    num_preemptions: int = 0  # how often it was sent back to the queue
    first_usage: ExpertUsage | None = None  # what its experts had cost when its first token had come
    last_usage: ExpertUsage | None = None  # and when it had ended
    stalls: Sequence[Stall] = ()  # the longest ones, if they are asked for, in no order

    @property
    def queue_seconds(self) -> float | None:
        """Until its first step."""
        return None if self.started_at is None else self.started_at - self.submitted_at

    @property
    def first_token_seconds(self) -> float | None:
        """Until its first token, queue included."""
        return None if self.first_token_at is None else self.first_token_at - self.submitted_at

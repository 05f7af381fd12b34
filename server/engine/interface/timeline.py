"""Times at which a request was submitted, started, got tokens and ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.engine.interface.events import ExpertUsage
from server.model.stalls import Stall


@dataclass(frozen=True)
class PassTime:
    """A pass layer by layer that computed tokens of a prompt."""

    started_at: float  # by ``time.monotonic``
    ended_at: float  # by ``time.monotonic``
    num_tokens: int  # of this prompt
    num_prompts: int  # that shared the pass


@dataclass
class Timeline:
    """Times of one request, in seconds of ``time.monotonic``; None until it happens. The engine's thread writes it."""

    submitted_at: float
    started_at: float | None = None  # start of its first step
    first_token_at: float | None = None
    last_token_at: float | None = None
    ended_at: float | None = None  # with ``stop`` or ``length``
    num_cached_tokens: int = 0  # prompt tokens found in the KV cache at its start
    num_preemptions: int = 0  # times that it was moved back to the queue
    first_usage: ExpertUsage | None = None  # cost of its experts up to its first token
    last_usage: ExpertUsage | None = None  # and up to its end
    passes: Sequence[PassTime] = ()  # over its prompt, that have finished
    stalls: Sequence[Stall] = ()  # the longest ones, if requested, in no order
    replica: str | None = None  # of a cluster, that computed it
    received_at: float | None = None  # when that replica had got it

    @property
    def queue_seconds(self) -> float | None:
        """Seconds from submission to its first step."""
        return None if self.started_at is None else self.started_at - self.submitted_at

    @property
    def first_token_seconds(self) -> float | None:
        """Seconds from submission to its first token."""
        return None if self.first_token_at is None else self.first_token_at - self.submitted_at

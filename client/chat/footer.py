"""What an answer took."""

from __future__ import annotations

from dataclasses import dataclass

from client.generation import ExpertUsage, Usage
from client.terminal import size_text


@dataclass
class Timing:
    """When pieces of an answer came, in seconds of some clock."""

    asked: float
    first: float | None = None
    last: float | None = None
    num_pieces: int = 0

    def count(self, now: float) -> None:
        """A piece has come."""
        self.num_pieces += 1
        self.first = now if self.first is None else self.first
        self.last = now


def footer(usage: Usage | None, timing: Timing) -> list[str]:
    """Tokens, their rate, and what the experts cost; of an answer that was stopped, the server says nothing."""
    num_tokens = timing.num_pieces if usage is None else usage.completion_tokens
    parts = [("about " if usage is None else "") + _count(num_tokens, "token")]
    if timing.first is not None and timing.last is not None:
        if num_tokens > 1 and timing.last > timing.first:
            parts.append(f"{(num_tokens - 1) / (timing.last - timing.first):.1f} tokens/s")
        parts.append(f"first after {timing.first - timing.asked:.2f} s")
    if usage is not None and usage.greenroom is not None:
        parts += _expert_parts(usage.greenroom)
    return parts


def _expert_parts(experts: ExpertUsage) -> list[str]:
    if not experts.expert_requests:
        return []
    return [
        f"{experts.expert_misses:,} of {_count(experts.expert_requests, 'expert')} missed",
        f"{size_text(experts.expert_bytes_read)} read",
        f"{experts.expert_stall_seconds:.2f} s stalled",
    ]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

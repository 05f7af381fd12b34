"""The line below an answer: routing, tokens, speed and expert cost."""

from __future__ import annotations

from dataclasses import dataclass

from client.generation import ExpertUsage, Routing, Usage
from client.terminal import size_text

MAX_WEIGHTS = 4


@dataclass
class Timing:
    """Arrival times of the chunks of an answer, in seconds of a monotonic clock."""

    sent: float
    first: float | None = None
    last: float | None = None
    num_chunks: int = 0

    def count(self, now: float) -> None:
        """Record the arrival of a chunk."""
        self.num_chunks += 1
        self.first = now if self.first is None else self.first
        self.last = now


def footer(usage: Usage | None, timing: Timing) -> list[str]:
    """Return the parts of the line. A stopped answer has no usage, so its tokens are estimated by its chunks."""
    num_tokens = timing.num_chunks if usage is None else usage.completion_tokens
    parts = [("about " if usage is None else "") + _count(num_tokens, "token")]
    if timing.first is not None and timing.last is not None:
        if num_tokens > 1 and timing.last > timing.first:
            parts.append(f"{(num_tokens - 1) / (timing.last - timing.first):.1f} tokens/s")
        parts.append(f"first token after {timing.first - timing.sent:.2f} s")
    if usage is not None and usage.greenroom is not None:
        parts += _expert_parts(usage.greenroom)
    return parts


def routing_text(routing: Routing) -> str:
    """Return what a router chose: a model for the request, or the mean weights of adapters, the heaviest first."""
    if not routing.weights:
        return f"routed to {routing.model}"
    weights = sorted(routing.weights.items(), key=lambda item: item[1], reverse=True)
    names = [f"{name} {100 * weight:.0f} %" for name, weight in weights if weight > 0]
    more = [f"{len(names) - MAX_WEIGHTS} more"] if len(names) > MAX_WEIGHTS else []
    return "routed by token" + (" to " if names else "") + ", ".join([*names[:MAX_WEIGHTS], *more])


def _expert_parts(experts: ExpertUsage) -> list[str]:
    if not experts.expert_requests:
        return []
    return [
        f"{experts.expert_misses:,} of {_count(experts.expert_requests, 'expert request')} missed",
        f"{size_text(experts.expert_bytes_read)} read{_from_elsewhere(experts.expert_remote_bytes)}",
        f"{experts.expert_stall_seconds:.2f} s stalled",
    ]


def _from_elsewhere(nbytes: int) -> str:
    return f", {size_text(nbytes)} of it over the network" if nbytes else ""


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

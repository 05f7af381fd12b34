"""Progress of a server's requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from client.generation import ExpertUsage
from client.parsing import dataclass_from


@dataclass(frozen=True)
class RequestStatus:
    """Progress of one choice of a request. ``state`` is "waiting", "prefill", "decode" or "held"."""

    id: str
    choice: int
    model: str
    state: str
    priority: int
    prompt_tokens: int
    cached_tokens: int  # tokens of prompt and completion in the KV cache
    completion_tokens: int
    max_tokens: int
    preemptions: int
    age_seconds: float
    queue_seconds: float
    greenroom: ExpertUsage  # cost in experts so far

    @property
    def key(self) -> tuple[str, int]:
        """The id and the choice, which no other status has."""
        return self.id, self.choice


def parse_requests(body: Mapping[str, Any]) -> list[RequestStatus]:
    return [
        dataclass_from(RequestStatus, status, greenroom=dataclass_from(ExpertUsage, status["greenroom"]))
        for status in body["data"]
    ]

"""LoRA adapters of a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from client.parsing import dataclass_from


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter. ``state`` is "registered", "loading", "resident" or "running"; ``tier`` is "host" or "disk"."""

    name: str
    path: str
    state: str
    tier: str
    rank: int  # the highest one
    bytes: int  # in its file
    memory_bytes: int
    num_unfinished: int  # requests that use it now
    num_requests: int  # since it was loaded
    tokens: int  # computed with it; of those with adapters chosen for each token, its mean weight


def parse_adapters(body: Mapping[str, Any]) -> list[Adapter]:
    return [
        dataclass_from(
            Adapter,
            adapter,
            num_unfinished=adapter["requests"]["unfinished"],
            num_requests=adapter["requests"]["total"],
        )
        for adapter in body["data"]
    ]

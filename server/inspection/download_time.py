"""Predicts the time to the first answer and to the complete download of a model that is elsewhere."""

from __future__ import annotations

import re
from typing import Any

from expert_store.catalog import reads_per_expert
from server.inspection.model_summary import ModelSummary

RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMG])bit(?:/s)?")
FACTORS = {"k": 1e3, "M": 1e6, "G": 1e9}
PROMPTS = (1, 32, 512)  # tokens


def parse_rate(text: str) -> float:
    """Return the bytes a second of a rate in bits, such as ``1Gbit``.

    Raises:
        ValueError: it is none.
    """
    found = RATE.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise ValueError(f"{text!r} is not a rate; give one such as 100Mbit or 1Gbit")
    return float(found[1]) * FACTORS[found[2]] / 8


def predict_download(summary: ModelSummary, bytes_per_second: float, start_seconds: float = 0.0) -> dict[str, Any]:
    """Return the seconds until the first token of some prompts, with nothing on the disk, and until all is there.

    They count from the start of a server. Routing is taken to be even, so that a prompt touches as many experts as it
    can on average; it touches fewer where routing is not. Computing takes time beside.

    Args:
        start_seconds: from the start of a server until it reads the trunk.
    """
    shape, layouts = summary.outline, summary.catalog.layers
    total = shape.trunk_bytes + summary.catalog.total_bytes

    def touched_bytes(num_tokens: int) -> float:
        return sum(
            (1 - (1 - shape.top_k[layer] / len(entry.experts)) ** num_tokens)
            * len(entry.experts)
            * summary.catalog.layout(layer).slot_bytes
            for layer, entry in layouts.items()
            if layer in shape.top_k
        )

    return {
        "bytes_per_second": bytes_per_second,
        "start_seconds": start_seconds,
        "trunk_seconds": start_seconds + shape.trunk_bytes / bytes_per_second,
        "first_token_seconds": {
            str(count): start_seconds + (shape.trunk_bytes + touched_bytes(count)) / bytes_per_second
            for count in PROMPTS
        },
        "complete_seconds": start_seconds + total / bytes_per_second,
        "requests_per_miss": reads_per_expert(summary.catalog),
    }

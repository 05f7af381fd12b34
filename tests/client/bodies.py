"""Response bodies of a server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

TIERS = {
    "host": {
        "budget_bytes": 4096,
        "num_slots": 4,
        "slot_bytes": 1024,
        "num_resident": 3,
        "resident_bytes": 3072,
        "num_pinned": 1,
    },
    "disk": {"num_experts": 6, "total_bytes": 6144},
}
STATE = {
    "tiers": TIERS,
    "hit_ratio": 0.5,
    "optimal_hit_ratio": 0.75,
    "stall_seconds": 1.5,
    "loaded_bytes": 8192,
    "prompt_tokens": 10,
    "generation_tokens": 20,
    "num_requests_running": 1,
    "num_requests_waiting": 0,
    "kv_cache_usage": 0.25,
    "memory": {
        "budget_bytes": 16384,
        "parts": {"trunk": 4096, "experts": 3072, "kv_cache": 512, "step": 0, "process": 512, "unaccounted": 0},
        "num_shrinks": 1,
        "num_grows": 0,
        "reason": "requests need KV cache",
    },
}
SNAPSHOT = {
    "model": "tiny",
    "layers": [{"layer": 1, "num_experts": 3}, {"layer": 4, "num_experts": 3}],
    "residency": [[0, 1, 2], [0, 0, 1]],
    "tokens": [[0, 5, 6], [0, 0, 9]],
    "pinned": [[1, 2]],
    "balance": [{"layer": 1, "cv": 0.5, "max_over_mean": 2.0, "dead": [0], "overloaded": []}],
    **STATE,
}
EXPERT = {
    "layer": 1,
    "expert": 2,
    "variant": "base",
    "residency": "host",
    "tokens": 7,
    "bytes": 1024,
    "pinned": True,
    "quarantined": None,
}
EXPERTS = {
    "object": "experts",
    "model": "tiny",
    "evictions": 3,
    "layers": [{"layer": 1, "experts": [EXPERT, EXPERT | {"expert": 3, "tokens": 70, "residency": "disk"}]}],
    **{name: STATE[name] for name in ("tiers", "hit_ratio", "optimal_hit_ratio", "stall_seconds", "loaded_bytes")},
}
VARIANT = {
    "object": "experts.variant",
    "model": "tiny:law",
    "name": "law",
    "path": "/srv/experts/law",
    "version": 2,
    "experts": 48,
    "experts_added": 0,
    "experts_removed": 0,
    "layers": [3, 4, 5],
    "routers": 0,
    "tensors": 144,
    "bytes": 4096,
    "experts_resident": 12,
    "tokens": 1234,
    "requests": {"unfinished": 0, "total": 7},
}
ADAPTER = {
    "name": "code",
    "path": "/srv/adapters/code",
    "version": 1,
    "state": "running",
    "tier": "host",
    "rank": 8,
    "ranks": [8],
    "tensors": 4,
    "bytes": 2048,
    "memory_bytes": 2048,
    "base_model": None,
    "requests": {"unfinished": 1, "total": 3},
    "tokens": 5678,
}
VARIANTS = {"object": "list", "folder": "/srv/experts", "greenroom_base": "ab12", "data": [VARIANT]}
ADAPTERS = {"object": "adapters", "folder": "/srv/adapters", "memory": None, "data": [ADAPTER]}
EXPERT_USAGE = {
    "expert_requests": 40,
    "expert_misses": 4,
    "expert_bytes_read": 4096,
    "expert_stall_seconds": 0.25,
}
REQUEST = {
    "id": "chatcmpl-5a0c1234",
    "object": "request",
    "choice": 0,
    "model": "tiny",
    "state": "decode",
    "priority": 0,
    "prompt_tokens": 24,
    "cached_tokens": 61,
    "completion_tokens": 38,
    "max_tokens": 256,
    "preemptions": 0,
    "age_seconds": 2.125,
    "queue_seconds": 0.0,
    "greenroom": EXPERT_USAGE,
}
REQUESTS = {"object": "list", "data": [REQUEST]}
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 1},
    "greenroom": EXPERT_USAGE,
}
HEAD = {"id": "cmpl-1", "object": "text_completion", "created": 1700000000, "model": "tiny"}
COMPLETION = HEAD | {
    "choices": [{"index": 0, "text": "Once upon", "logprobs": None, "finish_reason": "length"}],
    "usage": USAGE,
}
KEY_HINT = "set --api-key, or --admin-api-key for experts"
REFUSAL = {
    "error": {"message": "'top_p' is wrong.", "type": "invalid_request_error", "param": "top_p", "code": "too_high"}
}


def event(data: Any, name: str | None = None) -> bytes:
    """Return one server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def chunk(text: str, finish_reason: str | None = None, **choice: Any) -> bytes:
    """Return one chunk of a streamed completion."""
    choices = [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason, **choice}]
    return event(HEAD | {"choices": choices, "usage": None})


def streamed(texts: Sequence[str]) -> bytes:
    """Return a complete streamed completion."""
    usage = event(HEAD | {"choices": [], "usage": USAGE})
    return b"".join(map(chunk, texts)) + chunk("", "stop") + usage + event("[DONE]")

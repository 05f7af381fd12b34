"""The ``usage`` of a response: tokens, and what its experts cost."""

from server.api.core.requests.generation import Generation
from server.engine.interface import ExpertUsage, JsonObject


def expert_usage(usage: ExpertUsage) -> JsonObject:
    """Return ``usage.greenroom``: the expert cost of a request.

    Passes, bytes that were on no disk, and tokens that no expert took are left out if there are none.
    """
    return {
        "expert_requests": usage.num_requests,
        "expert_misses": usage.num_misses,
        "expert_bytes_read": usage.bytes_read,
        "expert_stall_seconds": usage.stall_seconds,
        **({"prefill_passes": usage.num_passes} if usage.num_passes else {}),
        **({"expert_remote_bytes": usage.remote_bytes} if usage.remote_bytes else {}),
        **({"dropped_tokens": usage.num_dropped} if usage.num_dropped else {}),
    }


def usage(generation: Generation) -> JsonObject:
    """Count the tokens of the prompts, each prompt once, and of all choices together."""
    num_prompt_tokens, num_completion_tokens = generation.num_prompt_tokens, sum(generation.num_generated)
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": num_prompt_tokens + num_completion_tokens,
        "prompt_tokens_details": {"cached_tokens": generation.num_cached_tokens},
        "greenroom": expert_usage(generation.expert_usage),
    }

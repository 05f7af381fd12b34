"""Costs by which replicas are compared, from what the replicas have measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from server.cluster.scoring import Costs

LEAST_TOKENS = 1000  # prompt and generated ones each, before which the costs of any model are taken


@dataclass(frozen=True)
class Work:
    """Work of a replica since its start; times in seconds.

    Attributes:
        decode_lookups: of experts, by steps that decode; ``decode_misses`` of them were in no tier of memory.
        decode_stall_seconds: time in which these steps waited for experts.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    ended_requests: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    decode_lookups: int = 0
    decode_misses: int = 0
    decode_stall_seconds: float = 0.0


def measured_costs(work: Work) -> Costs:
    """Return the costs that follow from the work of a replica, or those of any model while it has done little."""
    if min(work.prompt_tokens, work.generated_tokens) < LEAST_TOKENS or not work.ended_requests:
        return Costs()
    completion_tokens = max(1, round(work.generated_tokens / work.ended_requests))
    lookups = work.decode_lookups / work.generated_tokens
    miss_seconds = work.decode_stall_seconds / work.decode_misses if work.decode_misses else 0.0
    return Costs(
        prompt_token=work.prefill_seconds / work.prompt_tokens,
        weights=Costs.weights,
        stalls=lookups * miss_seconds,
        # Its tokens are computed in the steps of the others, and take this much longer.
        request=completion_tokens * (work.decode_seconds - work.decode_stall_seconds) / work.generated_tokens,
        completion_tokens=completion_tokens,
    )


def mean_costs(costs: Sequence[Costs]) -> Costs:
    """Return the means of what several replicas have measured."""
    return Costs(
        fmean(each.prompt_token for each in costs),
        fmean(each.weights for each in costs),
        fmean(each.stalls for each in costs),
        fmean(each.request for each in costs),
        round(fmean(each.completion_tokens for each in costs)),
    )

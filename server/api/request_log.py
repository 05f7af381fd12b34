"""One line of the log for each request that has ended."""

import logging
from collections.abc import Sequence
from typing import Any

from server.api.ended_request import EndedRequest, Work, known_usage
from server.api.openai.generation import Generation

log = logging.getLogger(__name__)


def log_request(ended: EndedRequest, trace_id: str | None, prompts: Sequence[str] | None) -> None:
    """Write the line; what never came to be is left out.

    Args:
        trace_id: of the trace that tells more.
        prompts: what the model read, where that is asked for.

    """
    fields = {
        "request_id": ended.id,
        "trace_id": trace_id,
        "route": ended.route or ended.path,
        "status": ended.status,
        "seconds": round(ended.ended_at - ended.started_at, 6),
        **({} if ended.work is None else _work_fields(ended.work)),
        "error": ended.error,
        "prompts": prompts,
    }
    log.info("request", extra={"fields": {name: value for name, value in fields.items() if value is not None}})


def _work_fields(work: Work) -> dict[str, Any]:
    timelines = [stream.timeline for stream in work.streams]
    waits = [seconds for timeline in timelines if (seconds := timeline.queue_seconds) is not None]
    firsts = [seconds for timeline in timelines if (seconds := timeline.first_token_seconds) is not None]
    fields: dict[str, Any] = {
        "id": work.id,
        "model": work.model,
        "choices" if isinstance(work, Generation) else "inputs": len(timelines),
        "prompt_tokens": work.num_prompt_tokens,
        "queue_seconds": round(max(waits), 6) if waits else None,
        "first_token_seconds": round(min(firsts), 6) if firsts else None,
    }
    usage = known_usage(work)
    if usage is not None:
        fields["expert_misses"] = usage.num_misses
        fields["expert_bytes_read"] = usage.bytes_read
        fields["expert_stall_seconds"] = round(usage.stall_seconds, 6)
    if isinstance(work, Generation):
        fields["cached_tokens"] = work.num_cached_tokens
        fields["completion_tokens"] = sum(work.num_generated)
        fields["finish_reasons"] = [reason and reason.value for reason in work.finish_reasons]
    return fields

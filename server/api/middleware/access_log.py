"""The access log: one line for each finished request."""

import logging
from collections.abc import Sequence
from typing import Any

from server.api.core.requests.generation import Generation
from server.api.middleware.finished_request import FinishedRequest, Work, known_usage

log = logging.getLogger(__name__)


def log_request(finished: FinishedRequest, trace_id: str | None, prompts: Sequence[str] | None) -> None:
    """Write the line, without the fields that are None.

    Args:
        trace_id: id of the request's trace, if it was recorded.
        prompts: the prompts as the model read them, if they are to be logged.

    """
    fields = {
        "request_id": finished.id,
        "trace_id": trace_id,
        "route": finished.route or finished.path,
        "status": finished.status,
        "seconds": round(finished.ended_at - finished.started_at, 6),
        **({} if finished.work is None else _work_fields(finished.work)),
        "error": finished.error,
        "prompts": prompts,
    }
    log.info("request", extra={"fields": {name: value for name, value in fields.items() if value is not None}})


def _work_fields(work: Work) -> dict[str, Any]:
    timelines = [stream.timeline for stream in work.streams]
    queue_seconds = [seconds for timeline in timelines if (seconds := timeline.queue_seconds) is not None]
    first_token_seconds = [seconds for timeline in timelines if (seconds := timeline.first_token_seconds) is not None]
    fields: dict[str, Any] = {
        "id": work.id,
        "model": work.model,
        "choices" if isinstance(work, Generation) else "inputs": len(timelines),
        "prompt_tokens": work.num_prompt_tokens,
        "queue_seconds": round(max(queue_seconds), 6) if queue_seconds else None,
        "first_token_seconds": round(min(first_token_seconds), 6) if first_token_seconds else None,
    }
    usage = known_usage(work)
    if usage is not None:
        fields["expert_misses"] = usage.num_misses
        fields["expert_bytes_read"] = usage.bytes_read
        fields["prefill_passes"] = usage.num_passes or None
        fields["expert_remote_bytes"] = usage.remote_bytes or None
        fields["expert_stall_seconds"] = round(usage.stall_seconds, 6)
    if isinstance(work, Generation):
        if work.auto_choice is not None:
            fields["routing_method"] = work.auto_choice.method
            if work.auto_choice.score is not None:
                fields["routing_score"] = round(work.auto_choice.score, 6)
            fields["routing_weights"] = dict(work.auto_choice.shares) or None
            fields["routing_seconds"] = round(work.auto_choice.seconds, 6)
        fields["cached_tokens"] = work.num_cached_tokens
        fields["completion_tokens"] = sum(work.num_generated)
        fields["finish_reasons"] = [reason and reason.value for reason in work.finish_reasons]
    return fields

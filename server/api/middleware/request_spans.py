"""Spans of a finished request, by OpenTelemetry's semantic conventions for HTTP and for generative AI."""

from collections.abc import Sequence
from heapq import nlargest

from server.api.core.choice.auto_choice import AUTO
from server.api.core.requests.generation import Generation
from server.api.core.service.tracer import Span, Value
from server.api.middleware.finished_request import FinishedRequest, Work, known_usage
from server.engine.interface import ExpertUsage, PassTime, Stall, Timeline, TokenStream

MAX_CHOICES = 32  # choices of a request that have spans of their own
MAX_STALLS = 32  # stalls of a request that have spans
OPERATIONS = {  # all other routes are chats
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/api/generate": "text_completion",
    "/api/embed": "embeddings",
    "/api/embeddings": "embeddings",
}
FIRST_SERVER_ERROR = 500


def request_span(finished: FinishedRequest) -> Span:
    """Return the span of a request, with spans of its phases as children."""
    span = Span(
        finished.method if finished.route is None else f"{finished.method} {finished.route}",
        finished.started_at,
        finished.ended_at,
        {
            "http.request.method": finished.method,
            "url.scheme": "http",
            "url.path": finished.path,
            "greenroom.request.id": finished.id,
            **({} if finished.route is None else {"http.route": finished.route}),
            **({} if finished.status is None else {"http.response.status_code": finished.status}),
        },
    )
    if finished.error is not None:
        span.attributes["error.type"] = finished.error
    if finished.work is not None and finished.work.streams:
        span.children = [_preparation(finished, finished.work), _work_span(finished, finished.work)]
    span.is_failed = any(child.is_failed for child in span.children) or (finished.status or 0) >= FIRST_SERVER_ERROR
    return span


def _preparation(finished: FinishedRequest, work: Work) -> Span:
    """Covers reading the body, rendering the template, tokenizing, and compiling a grammar."""
    span = Span("prepare", finished.started_at, _submitted_at(work), {})
    auto_choice = work.auto_choice if isinstance(work, Generation) else None
    if auto_choice is not None:
        attributes: dict[str, Value] = {
            "greenroom.routing.prompt_tokens": auto_choice.num_tokens,
            **_usage_attributes(auto_choice.expert_usage),
        }
        span.children.append(Span("route", auto_choice.started_at, auto_choice.ended_at, attributes))
    return span


def _submitted_at(work: Work) -> float:
    return min(stream.timeline.submitted_at for stream in work.streams)


def _work_span(finished: FinishedRequest, work: Work) -> Span:
    operation = OPERATIONS.get(finished.path, "chat")
    span = Span(
        f"{operation} {work.model}",
        _submitted_at(work),
        finished.ended_at,
        {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "greenroom",
            "gen_ai.request.model": work.model,
            "gen_ai.response.model": work.model,
            "gen_ai.response.id": work.id,
            "gen_ai.usage.input_tokens": work.num_prompt_tokens,
            **_usage_attributes(known_usage(work)),
        },
    )
    if isinstance(work, Generation):
        span.attributes |= _generation_attributes(finished, work)
    if finished.error is not None:
        span.attributes["error.type"] = finished.error
        span.is_failed = isinstance(work, Generation) and work.error is not None
    shown = work.streams[:MAX_CHOICES]
    for index, (stream, stalls) in enumerate(zip(shown, _longest_stalls(shown), strict=True)):
        phases = _phases(stream, finished.ended_at, stalls)
        if len(work.streams) > 1:
            for phase in phases:
                phase.attributes["greenroom.choice"] = index
        span.children += phases
    return span


def _generation_attributes(finished: FinishedRequest, work: Generation) -> dict[str, Value]:
    sampling, auto_choice = work.streams[0].request.sampling, work.auto_choice
    firsts = [seconds for each in work.streams if (seconds := each.timeline.first_token_seconds) is not None]
    reasons = [reason.value for reason in work.finish_reasons if reason is not None]
    attributes: dict[str, Value] = {
        "gen_ai.usage.output_tokens": sum(work.num_generated),
        "gen_ai.usage.cache_read.input_tokens": work.num_cached_tokens,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.stream": finished.is_stream,
    }
    if auto_choice is not None:
        attributes |= {
            "gen_ai.request.model": AUTO,
            "greenroom.routing.method": auto_choice.method,
            "greenroom.routing.model": auto_choice.model,
            "greenroom.routing.reason": auto_choice.reason,
        }
        if auto_choice.score is not None:
            attributes["greenroom.routing.score"] = auto_choice.score
        if auto_choice.shares:
            attributes["greenroom.routing.weights"] = [
                f"{name}={share:.3f}" for name, share in auto_choice.shares.items()
            ]
    optional: dict[str, Value | None] = {
        "gen_ai.request.choice.count": len(work.streams) if len(work.streams) > 1 else None,
        "gen_ai.request.top_k": float(sampling.top_k) or None,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty or None,
        "gen_ai.request.presence_penalty": sampling.presence_penalty or None,
        "gen_ai.response.finish_reasons": reasons or None,
        "gen_ai.response.time_to_first_chunk": min(firsts) if firsts else None,
    }
    return attributes | {name: value for name, value in optional.items() if value is not None}


def _longest_stalls(streams: Sequence[TokenStream]) -> list[list[Stall]]:
    """Select the longest stalls of all streams, by stream. A stall that several streams share goes to the first."""
    owners = reversed(list(enumerate(streams)))
    stalls = {stall: (index, stall) for index, stream in owners for stall in stream.timeline.stalls}
    longest = nlargest(MAX_STALLS, stalls.values(), key=lambda item: item[1].seconds)
    return [[stall for owner, stall in longest if owner == index] for index in range(len(streams))]


def _phases(stream: TokenStream, ended_at: float, stalls: Sequence[Stall]) -> list[Span]:
    """Return the spans of a choice: in the queue, up to its first token, and up to its last, as far as it came."""
    timeline = stream.timeline
    end = ended_at if timeline.ended_at is None else timeline.ended_at
    queued_at = timeline.submitted_at if timeline.received_at is None else timeline.received_at
    if timeline.started_at is None:
        return [Span("queue", queued_at, end, {})]
    first = end if timeline.first_token_at is None else timeline.first_token_at
    phases = [
        Span("queue", queued_at, timeline.started_at, {}),
        Span("prefill", timeline.started_at, first, _usage_attributes(timeline.first_usage or timeline.last_usage)),
    ]
    if timeline.first_token_at is not None:
        phases.append(Span("decode", first, end, _usage_attributes(_decode_usage(timeline))))
    if timeline.num_preemptions:
        phases[-1].attributes["greenroom.preemptions"] = timeline.num_preemptions
    for child in (*map(_pass_span, timeline.passes), *map(_stall_span, stalls)):
        phase = phases[-1] if child.started_at >= first else phases[1]
        phase.children.append(child)
    if timeline.replica is not None:
        return [Span("replica", queued_at, end, {"greenroom.replica": timeline.replica}, phases)]
    return phases


def _decode_usage(timeline: Timeline) -> ExpertUsage | None:
    first, last = timeline.first_usage, timeline.last_usage
    return None if first is None or last is None else last - first


def _pass_span(each: PassTime) -> Span:
    attributes: dict[str, Value] = {
        "greenroom.pass.tokens": each.num_tokens,
        "greenroom.pass.requests": each.num_prompts,
    }
    return Span("prefill_pass", each.started_at, each.ended_at, attributes)


def _stall_span(stall: Stall) -> Span:
    usage = ExpertUsage(0, stall.num_misses, stall.bytes_read, stall.seconds)
    return Span(
        "expert_stall", stall.started_at, stall.ended_at, {"greenroom.layer": stall.layer, **_usage_attributes(usage)}
    )


def _usage_attributes(usage: ExpertUsage | None) -> dict[str, Value]:
    if usage is None:  # the work did not end
        return {}
    return {
        "greenroom.expert.misses": usage.num_misses,
        "greenroom.expert.bytes_read": usage.bytes_read,
        "greenroom.expert.stall_seconds": usage.stall_seconds,
    }

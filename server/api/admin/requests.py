"""``/v1/requests``: the running and waiting requests."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from server.api.core.replies.usage import expert_usage
from server.api.core.requests.loaded_model import LoadedModel
from server.api.core.service.dependencies import ServiceDep
from server.api.core.service.guard import AdminDep
from server.engine.interface import JsonObject, RequestStatus

router = APIRouter(prefix="/v1/requests", tags=["requests"], dependencies=[AdminDep])


# A plain function, which FastAPI runs in a thread: some hundred requests take a while to encode.
@router.get("")
def list_requests(service: ServiceDep) -> JSONResponse:
    """List every choice of every unfinished request, without prompts: the running ones, then the queue in its order."""
    model = service.base_model
    return JSONResponse({"object": "list", "data": [describe(each, model) for each in model.engine.statuses()]})


def describe(status: RequestStatus, base: LoadedModel) -> JsonObject:
    """Describe a choice; ``id`` is the same as in the reply and the access log."""
    generation_id, _, choice = status.request_id.rpartition("-")
    work = base.unfinished.get(generation_id)  # none in the moment before the last of its choices is submitted
    auto_choice = None if work is None else work.auto_choice
    return {
        "id": generation_id,
        "object": "request",
        "choice": int(choice),
        "model": base.name if work is None else work.model,
        "adapters": {} if work is None else dict(work.adapters),
        "state": status.state,
        "priority": status.priority,
        "prompt_tokens": status.num_prompt_tokens,
        "cached_tokens": status.num_cached_tokens,
        "completion_tokens": status.num_generated,
        "max_tokens": status.max_tokens,
        "preemptions": status.num_preemptions,
        "age_seconds": round(status.age_seconds, 3),
        "queue_seconds": round(status.queue_seconds, 3),
        "greenroom": expert_usage(status.expert_usage) | ({} if auto_choice is None else auto_choice.member),
    }

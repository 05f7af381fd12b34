"""``/v1/requests``: what the server is at."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from server.api.auth import AdminDep
from server.api.dependencies import ServiceDep
from server.api.openai.replies import expert_usage
from server.engine.request import JsonObject, RequestStatus

router = APIRouter(prefix="/v1/requests", tags=["requests"], dependencies=[AdminDep])


# A plain function, which FastAPI runs in a thread of its own: some hundred requests take a while to write down.
@router.get("")
def list_requests(service: ServiceDep) -> JSONResponse:
    """Every choice of every request that has not ended: what runs, then what waits, first to go first; no prompts."""
    model = service.loaded_model(None)
    return JSONResponse({"object": "list", "data": [described(each, model.name) for each in model.engine.statuses()]})


def described(status: RequestStatus, model: str) -> JsonObject:
    """A choice as the route tells of it; ``id`` is that of the reply and of the log."""
    generation_id, _, choice = status.request_id.rpartition("-")
    return {
        "id": generation_id,
        "object": "request",
        "choice": int(choice),
        "model": model,
        "state": status.state,
        "priority": status.priority,
        "prompt_tokens": status.num_prompt_tokens,
        "cached_tokens": status.num_cached_tokens,
        "completion_tokens": status.num_generated,
        "max_tokens": status.max_tokens,
        "preemptions": status.num_preemptions,
        "age_seconds": round(status.age_seconds, 3),
        "queue_seconds": round(status.queue_seconds, 3),
        "greenroom": expert_usage(status.expert_usage),
    }

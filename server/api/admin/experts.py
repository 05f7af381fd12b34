"""``/v1/experts``: the residency of the model's experts, and routes to change it."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, PlainValidator

from server.api.admin.experts_stream import ExpertStream
from server.api.core.access.audit import audited
from server.api.core.errors.api_errors import ExpertNotFoundError
from server.api.core.errors.validation import quote
from server.api.core.json_text.encoding import around_list, encode_json
from server.api.core.service.body import JsonBody
from server.api.core.service.dependencies import ServiceDep
from server.api.core.service.expert_sampler import LEAST_INTERVAL_SECONDS, MOST_INTERVAL_SECONDS
from server.api.core.service.guard import AdminDep
from server.api.core.service.service import Service
from server.engine.interface import ExpertAdministration, ExpertChange, ExpertPlace, JsonObject

EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
MOST_NAMED = 16  # experts in a line of the audit log
MAX_PLACES = 32768  # in a request; the largest models have some 25,000 experts

# The routes are plain functions, which FastAPI runs in threads: they may have to wait for the store's lock.
router = APIRouter(prefix="/v1/experts", tags=["experts"], dependencies=[AdminDep])


def list_of_places(value: object) -> list[ExpertPlace]:
    if not isinstance(value, list) or len(value) > MAX_PLACES:
        raise ValueError(f"must be a list of at most {MAX_PLACES} pairs [layer, expert]")
    for pair in value:
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(number) is int for number in pair)):  # noqa: PLR2004
            raise ValueError(f"must hold pairs of integers [layer, expert] only, got {quote(pair)}")
    return [(layer, expert) for layer, expert in value]


class ExpertsBody(BaseModel):
    """A list of experts."""

    model_config = ConfigDict(strict=True, extra="allow")

    experts: Annotated[list[ExpertPlace], PlainValidator(list_of_places)]


@router.get("")
def list_experts(service: ServiceDep) -> Response:
    return Response(encode_overview(experts_of(service).overview()), media_type="application/json")


@router.get("/stream", response_class=StreamingResponse, responses=EVENTS)
async def stream_experts(
    service: ServiceDep,
    interval: Annotated[float, Query(ge=LEAST_INTERVAL_SECONDS, le=MOST_INTERVAL_SECONDS)] = 0.5,
) -> Response:
    return ExpertStream(service, experts_of(service), interval)


@router.get("/{layer}/{expert}")
def get_expert(layer: int, expert: int, service: ServiceDep) -> JSONResponse:
    found = experts_of(service).find(layer, expert)
    if found is None:
        raise ExpertNotFoundError(
            f"The model has no expert {quote(expert)} in layer {quote(layer)}: see GET /v1/experts."
        )
    return JSONResponse(found)


@router.post("/pin")
def pin_experts(body: Annotated[ExpertsBody, JsonBody(ExpertsBody)], service: ServiceDep) -> JSONResponse:
    return change("pin", body, service)


@router.post("/unpin")
def unpin_experts(body: Annotated[ExpertsBody, JsonBody(ExpertsBody)], service: ServiceDep) -> JSONResponse:
    return change("unpin", body, service)


@router.post("/prefetch")
def prefetch_experts(body: Annotated[ExpertsBody, JsonBody(ExpertsBody)], service: ServiceDep) -> JSONResponse:
    return change("prefetch", body, service)


@router.post("/evict")
def evict_experts(body: Annotated[ExpertsBody, JsonBody(ExpertsBody)], service: ServiceDep) -> JSONResponse:
    return change("evict", body, service)


def change(action: ExpertChange, body: ExpertsBody, service: Service) -> JSONResponse:
    service.unknown_fields.note(body.model_extra or ())
    experts = experts_of(service)
    with audited(f"experts.{action}", experts=named(body.experts)) as line:
        changed = experts.change(action, body.experts)
        line["changed"] = changed.num_changed
    reply = {"object": f"experts.{action}", "requested": len(body.experts), "changed": changed.num_changed}
    return JSONResponse(reply if changed.unchanged is None else reply | {"unchanged": changed.unchanged})


def named(experts: Sequence[ExpertPlace]) -> str:
    """Return the first experts of a list, for the audit log, and how many more there are."""
    more = len(experts) - MOST_NAMED
    names = [f"{layer}/{expert}" for layer, expert in experts[:MOST_NAMED]]
    return " ".join([*names, f"and {more} more"] if more > 0 else names)


def experts_of(service: Service) -> ExpertAdministration:
    """Return the experts of the loaded model.

    Raises:
        ServiceUnavailableError: the model is still loading.
        ExpertNotFoundError: the model has no experts that the store manages.

    """
    experts = service.base_model.experts
    if experts is None:
        raise ExpertNotFoundError("This model has no experts: use a mixture-of-experts model.")
    return experts


def encode_overview(overview: JsonObject) -> bytes:
    """Encode an overview layer by layer: the encoder holds the interpreter's lock."""
    layers = ",".join(encode_json(layer) for layer in overview["layers"])
    before, after = around_list(encode_json(overview | {"layers": []}), "layers")
    return f"{before}{layers}{after}".encode()

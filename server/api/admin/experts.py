"""``/v1/experts``: where the experts of the model are, and moving them."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, PlainValidator

from server.api.admin.experts_stream import ExpertStream
from server.api.auth import AdminDep
from server.api.body import BodyRoute
from server.api.dependencies import ServiceDep
from server.api.errors import ExpertNotFoundError
from server.api.expert_feed import LEAST_INTERVAL_SECONDS, MOST_INTERVAL_SECONDS
from server.api.openai.replies import around_list, encode_json
from server.api.service import Service
from server.api.validation import quote
from server.engine.request import ExpertAdministration, ExpertChange, ExpertPlace, JsonObject

EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
MAX_PLACES = 32768  # of a request; the largest models have some 25,000 experts

# Routes are plain functions, which FastAPI runs in threads of its own: the store's lock may be held by others.
router = APIRouter(prefix="/v1/experts", tags=["experts"], dependencies=[AdminDep], route_class=BodyRoute)


def list_of_places(value: object) -> list[ExpertPlace]:
    if not isinstance(value, list) or len(value) > MAX_PLACES:
        raise ValueError(f"must be a list of at most {MAX_PLACES} pairs [layer, expert]")
    for pair in value:
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(number) is int for number in pair)):  # noqa: PLR2004
            raise ValueError(f"must hold pairs of integers [layer, expert] only, but {quote(pair)} is none")
    return [(layer, expert) for layer, expert in value]


class ExpertsBody(BaseModel):
    """Which experts."""

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
def pin_experts(body: ExpertsBody, service: ServiceDep) -> JSONResponse:
    return change("pin", body, service)


@router.post("/unpin")
def unpin_experts(body: ExpertsBody, service: ServiceDep) -> JSONResponse:
    return change("unpin", body, service)


@router.post("/prefetch")
def prefetch_experts(body: ExpertsBody, service: ServiceDep) -> JSONResponse:
    return change("prefetch", body, service)


@router.post("/evict")
def evict_experts(body: ExpertsBody, service: ServiceDep) -> JSONResponse:
    return change("evict", body, service)


def change(action: ExpertChange, body: ExpertsBody, service: Service) -> JSONResponse:
    service.unknown_fields.note(body.model_extra or ())
    changed = experts_of(service).change(action, body.experts)
    return JSONResponse({"object": f"experts.{action}", "requested": len(body.experts), "changed": changed})


def experts_of(service: Service) -> ExpertAdministration:
    """The experts of the model that is served.

    Raises:
        ServiceUnavailableError: it is still being loaded.
        ExpertNotFoundError: it has none to show.

    """
    experts = service.loaded_model(None).experts
    if experts is None:
        raise ExpertNotFoundError("This model has no experts that could be shown.")
    return experts


def encode_overview(overview: JsonObject) -> bytes:
    """JSON of an overview, layer by layer: encoding holds the interpreter's lock, and all of it would for too long."""
    layers = ",".join(encode_json(layer) for layer in overview["layers"])
    before, after = around_list(encode_json(overview | {"layers": []}), "layers")
    return f"{before}{layers}{after}".encode()

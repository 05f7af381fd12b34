"""Operations: is it live, is it ready, which version, what has it done."""

from typing import Any

from fastapi import APIRouter, status
from fastapi.responses import JSONResponse, Response

from server.api.dependencies import ServiceDep
from server.api.service import ServiceState

PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"

NOT_NOW: dict[int | str, dict[str, Any]] = {503: {"description": "Not now; the body says why"}}
METRICS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus' text format", "content": {"text/plain": {}}}
}

router = APIRouter(tags=["operations"])


@router.get("/health", responses=NOT_NOW)
async def health(service: ServiceDep) -> JSONResponse:
    """Live: 503 only when nothing but a restart helps."""
    if service.state is ServiceState.DEAD:
        return JSONResponse({"status": service.state}, status.HTTP_503_SERVICE_UNAVAILABLE)
    return JSONResponse({"status": "ok"})


@router.get("/ready", responses=NOT_NOW)
async def ready(service: ServiceDep) -> JSONResponse:
    """Whether to send requests here."""
    code = status.HTTP_200_OK if service.is_ready else status.HTTP_503_SERVICE_UNAVAILABLE
    return JSONResponse({"status": service.state}, code)


@router.get("/version")
async def version(service: ServiceDep) -> JSONResponse:
    return JSONResponse({"version": service.version})


@router.get("/metrics", response_class=Response, responses=METRICS)
def metrics(service: ServiceDep) -> Response:
    return Response(service.metrics(), media_type=PROMETHEUS_TEXT)

"""Operations: is it live, is it ready, which version, what has it done."""

from fastapi import APIRouter, status
from fastapi.responses import JSONResponse, Response

from server.api.dependencies import ServiceDep
from server.api.service import ServiceState

PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"

router = APIRouter(tags=["operations"])


@router.get("/health")
async def health(service: ServiceDep) -> JSONResponse:
    """Live: 503 only when nothing but a restart helps."""
    if service.state is ServiceState.DEAD:
        return JSONResponse({"status": service.state}, status.HTTP_503_SERVICE_UNAVAILABLE)
    return JSONResponse({"status": "ok"})


@router.get("/ready")
async def ready(service: ServiceDep) -> JSONResponse:
    """Whether to send requests here."""
    code = status.HTTP_200_OK if service.is_ready else status.HTTP_503_SERVICE_UNAVAILABLE
    return JSONResponse({"status": service.state}, code)


@router.get("/version")
async def version(service: ServiceDep) -> JSONResponse:
    return JSONResponse({"version": service.version})


@router.get("/metrics")
def metrics(service: ServiceDep) -> Response:
    return Response(service.metrics(), media_type=PROMETHEUS_TEXT)

"""``/health``, ``/ready``, ``/ping`` and ``/version``."""

from typing import Any

from fastapi import APIRouter, status
from fastapi.responses import JSONResponse

from server.api.core.service.dependencies import ServiceDep

UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: {"description": "Unavailable; the body has the state"}}

router = APIRouter(tags=["operations"])


@router.get("/health", responses=UNAVAILABLE)
async def health(service: ServiceDep) -> JSONResponse:
    """Liveness: 503 only if the server needs a restart."""
    if (state := service.state).needs_restart:
        return JSONResponse({"status": state}, status.HTTP_503_SERVICE_UNAVAILABLE)
    return JSONResponse({"status": "ok"})


@router.get("/ready", responses=UNAVAILABLE)
async def ready(service: ServiceDep) -> JSONResponse:
    """Readiness: 503 unless the server accepts requests."""
    code = status.HTTP_200_OK if service.is_ready else status.HTTP_503_SERVICE_UNAVAILABLE
    return JSONResponse({"status": service.state}, code)


# As vLLM's and SageMaker's, which answer once the model is there, and take both methods.
@router.get("/ping", responses=UNAVAILABLE)
@router.post("/ping", responses=UNAVAILABLE)
async def ping(service: ServiceDep) -> JSONResponse:
    """Readiness, as ``/ready``."""
    return await ready(service)


@router.get("/version")
async def version(service: ServiceDep) -> JSONResponse:
    return JSONResponse({"version": service.version})

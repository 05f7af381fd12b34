"""``/metrics``, in Prometheus' text format."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from server.api.core.dependencies import ServiceDep

PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"

METRICS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus' text format", "content": {"text/plain": {}}}
}

router = APIRouter(tags=["operations"])


@router.get("/metrics", response_class=Response, responses=METRICS)
def metrics(service: ServiceDep) -> Response:
    return Response(service.metrics(), media_type=PROMETHEUS_TEXT)

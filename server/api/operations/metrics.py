"""``/metrics``, in Prometheus' text format."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.core.access.authentication import refusal
from server.api.core.service.dependencies import ServiceDep

PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"

METRICS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus' text format", "content": {"text/plain": {}}}
}

router = APIRouter(tags=["operations"])


@router.get("/metrics", response_class=Response, responses=METRICS)
def metrics(request: Request, service: ServiceDep) -> Response:
    # Access policies hide adapters and variants from keys, so only administrators see the names of all.
    hides_names = bool(service.policies.by_name) and refusal(request, service.keys, "admin") is not None
    return Response(service.metrics(hides_names=True) if hides_names else service.metrics(), media_type=PROMETHEUS_TEXT)

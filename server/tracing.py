"""From settings to where traces go."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from server.observability.logging import Seldom
from server.settings import ServeSettings, SettingsError

if TYPE_CHECKING:
    from server.observability.tracing import Tracing

EXPORTER_LOG = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
SECONDS_BETWEEN_COMPLAINTS = 60.0  # of a collector that takes nothing; there are some of each attempt at each batch
GRPC_PORT = 4317  # of collectors, by convention

log = logging.getLogger(__name__)


def open_tracing(settings: ServeSettings) -> Tracing | None:
    """What traces of requests are handed to, if they are asked for.

    Raises:
        SettingsError: OpenTelemetry is not installed, or its own variables can't be followed.
    """
    if settings.otlp_endpoint is None:
        return None
    try:
        from server.observability.tracing import Tracing, otlp_exporter  # noqa: PLC0415  an extra
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise SettingsError("--otlp-endpoint needs OpenTelemetry: pip install 'greenroom[otel]'") from error
    if urlsplit(settings.otlp_endpoint).port == GRPC_PORT:
        log.warning("--otlp-endpoint: port 4317 is gRPC by convention; traces go over HTTP, for which it is 4318")
    logging.getLogger(EXPORTER_LOG).addFilter(Seldom(SECONDS_BETWEEN_COMPLAINTS))
    try:
        return Tracing(otlp_exporter(settings.otlp_endpoint), version("greenroom"))
    except ValueError as error:
        raise SettingsError(f"--otlp-endpoint: the OTEL_... variables do not go together: {error}") from error

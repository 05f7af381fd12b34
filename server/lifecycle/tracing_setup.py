"""Sets up the export of OpenTelemetry traces, as the settings ask."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from server.observability.logging import RateLimitFilter, RewordingFilter
from server.settings import ServeSettings, SettingsError

if TYPE_CHECKING:
    from server.observability.otlp import Tracing

HEADERS_LOG = "opentelemetry.util.re"  # it quotes what it can't read, which may be a key
BAD_HEADERS = "an OTEL_..._HEADERS variable has an entry that is not NAME=VALUE, URL-encoded; it is left out"
EXPORTER_LOG = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
SECONDS_BETWEEN_COMPLAINTS = 60.0  # the exporter logs several messages at each failed attempt to send a batch
GRPC_PORT = 4317  # the usual gRPC port of collectors

log = logging.getLogger(__name__)


def open_tracing(settings: ServeSettings) -> Tracing | None:
    """Return the exporter of request traces; None without ``--otlp-endpoint``.

    Raises:
        SettingsError: OpenTelemetry is not installed, or its environment variables are contradictory.
    """
    if settings.otlp_endpoint is None:
        return None
    try:
        from server.observability.otlp import Tracing, otlp_exporter  # noqa: PLC0415  an extra
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise SettingsError("--otlp-endpoint needs OpenTelemetry: pip install 'greenroom[otel]'") from error
    if urlsplit(settings.otlp_endpoint).port == GRPC_PORT:
        log.warning(
            "--otlp-endpoint: port 4317 is usually for gRPC, but traces are sent over HTTP; the usual port is 4318"
        )
    logging.getLogger(EXPORTER_LOG).addFilter(RateLimitFilter(SECONDS_BETWEEN_COMPLAINTS))
    logging.getLogger(HEADERS_LOG).addFilter(RewordingFilter(BAD_HEADERS))
    try:
        return Tracing(otlp_exporter(settings.otlp_endpoint), version("greenroom"))
    except ValueError as error:
        raise SettingsError(
            f"--otlp-endpoint: the OTEL_... environment variables are contradictory: {error}"
        ) from error

"""Runs a hosted model as a server of its own: listen, load, answer requests, drain at a signal, stop."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any, cast

import uvicorn

from server.api.core.service.service import Service
from server.lifecycle.application import application_of
from server.lifecycle.draining import Listener, close, drain
from server.lifecycle.hosted_model import HostedModel
from server.lifecycle.http_protocol import ConnectionGuard
from server.lifecycle.listening_socket import listen
from server.lifecycle.ready_line import write_ready_line
from server.lifecycle.signals import Signals
from server.observability.logging import QueryFilter
from server.settings import ServeSettings

log = logging.getLogger(__name__)


async def serve(model: str | None, settings: ServeSettings) -> None:
    """Serve until a stop signal comes. `/ready` is 503 until the model is loaded.

    Threads may be left that still load, or that work for a request that has ended.

    Raises:
        ModelError, ExpertStoreError, SettingsError: the model can't be served.
    """
    with listen(settings.host, settings.port) as listener:
        hosted = HostedModel(model, settings, listener.getsockname()[0])
        service, stop = hosted.service, Signals(hosted.hooks)
        server = Listener(_configure(service, settings))
        serving = asyncio.create_task(server.serve([listener]))
        loading = hosted.load()
        try:
            await _first_of(serving, loading, stop.asked)
            if loading.done():
                loaded = loading.result()
                await hosted.use(loaded)
                write_ready_line(f"Greenroom ready: {_url(listener)} (model {loaded.name})")
                await _first_of(serving, stop.asked)
                hosted.stop_recording()
                await drain(service, server, settings.shutdown_timeout, stop.hurried)
                for closing in hosted.closings():
                    await close(closing, stop.hurried)
        finally:
            server.should_exit = True
            server.force_exit = stop.hurried.done()
            await serving
            await hosted.close_service()
    log.info("stopped")


def _configure(service: Service, settings: ServeSettings) -> uvicorn.Config:
    is_debugging = settings.log_level == "debug"
    logging.getLogger("uvicorn.access").addFilter(QueryFilter())
    return uvicorn.Config(
        application_of(service),
        http=cast("type[asyncio.Protocol]", ConnectionGuard()),
        ws="none",
        log_config=None,
        log_level="debug" if is_debugging else "warning",
        access_log=is_debugging,
        timeout_graceful_shutdown=1,  # draining has already waited
        proxy_headers=False,  # the client's address is the socket's, never a header's
        server_header=False,
    )


async def _first_of(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

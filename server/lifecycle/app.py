"""Runs the server: listen, load the model, answer requests, drain, stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import threading
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from server.api.core.access.audit import audit
from server.api.core.requests.auto_request import learn_examples
from server.api.core.requests.loaded_model import LoadedModel
from server.api.core.service.service import Service
from server.api.routes import add_routes
from server.lifecycle.draining import Listener, close, drain
from server.lifecycle.history_recording import record_history
from server.lifecycle.http_protocol import ConnectionGuard
from server.lifecycle.listening_socket import listen
from server.lifecycle.policy_setup import add_policies
from server.lifecycle.ready_line import write_ready_line
from server.lifecycle.reload_hooks import ReloadHooks
from server.lifecycle.service_setup import add_key_files, make_service
from server.lifecycle.signals import Signals
from server.lifecycle.tracing_setup import open_tracing
from server.loading.bundled_weights import ADAPTERS, with_bundled_adapters
from server.loading.load import LoadedServer, load_server
from server.observability.logging import QueryFilter
from server.panics import panics_as_errors
from server.settings import ServeSettings

log = logging.getLogger(__name__)


def create_app(service: Service) -> FastAPI:
    """Create the HTTP application of a service, without FastAPI's pages that load scripts from other sites."""
    app = FastAPI(title="Greenroom", version=service.version, docs_url=None, redoc_url=None)
    add_routes(app, service)
    return app


async def serve(model: str | None, settings: ServeSettings) -> None:
    """Serve until a stop signal comes. `/ready` is 503 until the model is loaded.

    Threads may be left that still load, or that work for a request that has ended.

    Raises:
        ModelError, ExpertStoreError, SettingsError: the model can't be served.
    """
    settings = with_bundled_adapters(model, settings)
    with listen(settings.host, settings.port) as listener:
        tracing = open_tracing(settings)
        service = make_service(settings, listener.getsockname()[0])
        service.tracer = tracing
        hooks = ReloadHooks()
        add_key_files(hooks, service, settings)
        policies = add_policies(settings, service, hooks)
        stop = Signals(hooks)
        server = Listener(_configure(service, settings))
        serving = asyncio.create_task(server.serve([listener]))
        loading = _load_in_thread(model, settings)
        try:
            await _first_of(serving, loading, stop.asked)
            if loading.done():
                loaded = loading.result()
                if policies is not None:
                    await asyncio.to_thread(policies.use_model, loaded.directory.prepare)
                service.model = LoadedModel(
                    loaded.name,
                    loaded.engine,
                    loaded.codec,
                    loaded.defaults,
                    loaded.experts,
                    lambda: loaded.store.health,
                    tracing is not None,
                    card=loaded.card,
                    adapters=None if loaded.adapters is None else loaded.adapters.registry,
                    adapters_on_request=None if loaded.adapters is None else loaded.adapters.on_request,
                    directory=loaded.directory,
                    variants=loaded.variants,
                    memory=loaded.request_memory,
                )
                loaded.metrics.policy_refusals = lambda: service.policy_refusals.of(service.policies)
                service.metrics = loaded.metrics.render
                recording = asyncio.create_task(record_history(service, loaded.experts.totals))
                _audit_start(loaded)
                if settings.adapters_dir != ADAPTERS:  # the bundled ones cost nothing before `auto` is asked for
                    service.model.profiles.in_background(learn_examples(service.model))
                # Objects of the loaded model stay. Checking them for garbage stops every thread for 0.2 s and more.
                gc.freeze()
                write_ready_line(f"Greenroom ready: {_url(listener)} (model {loaded.name})")
                await _first_of(serving, stop.asked)
                recording.cancel()
                await drain(service, server, settings.shutdown_timeout, stop.hurried)
                await close(loaded.close, stop.hurried)
                if tracing is not None:
                    await close(tracing.close, stop.hurried)
        finally:
            server.should_exit = True
            server.force_exit = stop.hurried.done()
            await serving
            if service.response_store is not None:
                await asyncio.to_thread(service.response_store.close)
    log.info("stopped")


def _configure(service: Service, settings: ServeSettings) -> uvicorn.Config:
    is_debugging = settings.log_level == "debug"
    logging.getLogger("uvicorn.access").addFilter(QueryFilter())
    return uvicorn.Config(
        create_app(service),
        http=cast("type[asyncio.Protocol]", ConnectionGuard()),
        ws="none",
        log_config=None,
        log_level="debug" if is_debugging else "warning",
        access_log=is_debugging,
        timeout_graceful_shutdown=1,  # draining has already waited
        proxy_headers=False,  # the client's address is the socket's, never a header's
        server_header=False,
    )


def _audit_start(loaded: LoadedServer) -> None:
    """Write an audit line for each adapter and variant that was loaded at start."""
    for version, _ in [] if loaded.adapters is None else loaded.adapters.registry.versions():
        audit("adapter.load", who="start", adapter=version.name, path=str(version.folder))
    for name in loaded.variants.names():
        audit("variant.load", who="start", variant=name, path=loaded.directory.root(f"{loaded.name}:{name}"))


async def _first_of(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _load_in_thread(model: str | None, settings: ServeSettings) -> asyncio.Future[LoadedServer]:
    """Load the model in a daemon thread, which does not keep the process alive if it is stopped while loading."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[LoadedServer] = loop.create_future()

    def settle(result: LoadedServer | None, error: Exception | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        elif result is not None:
            future.set_result(result)

    def load() -> None:
        try:
            with panics_as_errors():
                result = load_server(model, settings)
        except Exception as error:  # noqa: BLE001  raised where the future is awaited
            loop.call_soon_threadsafe(settle, None, error)
        else:
            loop.call_soon_threadsafe(settle, result, None)

    threading.Thread(target=load, name="loader", daemon=True).start()
    return future


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

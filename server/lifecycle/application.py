"""The HTTP application of a service."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI

from server.api.core.service.service import Service
from server.api.routes import add_routes

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def application_of(service: Service, lifespan: Lifespan | None = None) -> FastAPI:
    """Create the application of a service, without FastAPI's pages that load scripts from other sites."""
    app = FastAPI(title="Greenroom", version=service.version, docs_url=None, redoc_url=None, lifespan=lifespan)
    add_routes(app, service)
    return app

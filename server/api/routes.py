"""Everything the server answers over HTTP."""

from fastapi import FastAPI

from server.api import ops
from server.api.error_handlers import add_error_handlers
from server.api.openai import chat, completions, models
from server.api.openapi import describe
from server.api.request_id import RequestIdMiddleware
from server.api.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """Let ``app`` answer for ``service``, which may still be loading its model."""
    app.state.service = service
    app.add_middleware(RequestIdMiddleware)
    add_error_handlers(app)
    for module in (ops, models, completions, chat):
        app.include_router(module.router)
    describe(app)

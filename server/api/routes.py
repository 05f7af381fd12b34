"""Everything the server answers over HTTP."""

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from server.api import dashboard, ops, tokenization
from server.api.admin import experts, requests
from server.api.anthropic import messages
from server.api.endings import EndingMiddleware
from server.api.error_handlers import add_error_handlers
from server.api.hosts import HostMiddleware
from server.api.openai import chat, completions, embeddings, models
from server.api.openai.responses import route as responses
from server.api.openapi import describe
from server.api.rates import RATE_HEADERS, TurnstileMiddleware
from server.api.request_id import REQUEST_ID_HEADER, RequestIdMiddleware
from server.api.service import Service

EXPOSED_HEADERS = (
    REQUEST_ID_HEADER,
    "Retry-After",
    *RATE_HEADERS,
)  # to pages of other origins, beside those that all may see


def add_routes(app: FastAPI, service: Service) -> None:
    """Let ``app`` answer for ``service``, which may still be loading its model."""
    app.state.service = service
    # A path is right or it is not: behind a proxy the way to another may lead from https to http, and keys go along.
    app.router.redirect_slashes = False
    app.add_middleware(TurnstileMiddleware)
    if service.hosts.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(service.hosts.origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(HostMiddleware, hosts=service.hosts)
    app.add_middleware(EndingMiddleware)
    app.add_middleware(RequestIdMiddleware)
    add_error_handlers(app)
    users = (models, completions, chat, embeddings, tokenization, responses, messages)
    for module in (dashboard, ops, *users, experts, requests):
        app.include_router(module.router)
    describe(app)

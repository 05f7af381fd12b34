"""All routes and middleware of the HTTP API."""

from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.routing import BaseRoute, Match

from server.api.admin import adapters, experts, folders, history, prefix_cache, requests, variants
from server.api.anthropic import absent as anthropic_absent
from server.api.anthropic import messages
from server.api.anthropic import models as anthropic_models
from server.api.core.access.rate_limiter import RATE_HEADERS
from server.api.core.bodies.hosted_tools import IGNORED_TOOLS_HEADER
from server.api.core.bodies.other_samplers import IGNORED_FIELDS_HEADER
from server.api.core.choice.auto_choice import ROUTING_HEADER
from server.api.core.errors.api_errors import APIError
from server.api.core.service.openapi import describe
from server.api.core.service.service import Service
from server.api.error_handlers import add_error_handlers, answer_error
from server.api.middleware.host_check import HostMiddleware
from server.api.middleware.panic_handler import PanicMiddleware
from server.api.middleware.rate_limit import RateLimitMiddleware
from server.api.middleware.request_id import REQUEST_ID_HEADER, RequestIdMiddleware
from server.api.middleware.request_observer import RequestObserverMiddleware
from server.api.ollama import chat as ollama_chat
from server.api.ollama import embed, management
from server.api.ollama import models as ollama_models
from server.api.openai import absent, chat, classify, completions, embeddings, models, scoring, tokenization
from server.api.openai.responses import route as responses
from server.api.openai.responses import stored as stored_responses
from server.api.operations import access, dashboard, health, metrics, other_routes

# Response headers that pages of other origins may read, besides those that CORS always allows.
EXPOSED_HEADERS = (
    REQUEST_ID_HEADER,
    "Retry-After",
    IGNORED_FIELDS_HEADER,
    IGNORED_TOOLS_HEADER,
    ROUTING_HEADER,
    *RATE_HEADERS,
)

OPERATION_ROUTES = (dashboard, health, metrics, access)
OLLAMA_ROUTES = (ollama_chat, embed, ollama_models, management)
# Where dialects share a path, the first route that matches a request answers it.
USER_ROUTES = (
    anthropic_models,
    models,
    completions,
    chat,
    embeddings,
    classify,
    scoring,
    tokenization,
    responses,
    stored_responses,
    messages,
    anthropic_absent,
    absent,
    *OLLAMA_ROUTES,
)
ADMIN_ROUTES = (variants, experts, adapters, folders, requests, history, prefix_cache)


def add_routes(app: FastAPI, service: Service) -> None:
    """Make ``app`` serve ``service``, whose model may still be loading."""
    app.state.service = service
    # Redirecting would send the API key again, behind a proxy perhaps over http instead of https.
    app.router.redirect_slashes = False
    app.add_middleware(PanicMiddleware)  # the innermost, since others handle exceptions
    app.add_middleware(RateLimitMiddleware)
    if service.host_rules.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(service.host_rules.origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    routers = [module.router for module in (*OPERATION_ROUTES, *USER_ROUTES, *ADMIN_ROUTES, other_routes)]
    routes = app.state.routes = [route for router in routers for route in router.routes]

    def refuse(request: Request, error: APIError) -> JSONResponse:
        if (route := route_of(request, routes)) is not None:
            request.scope["route"] = route  # the error has the form of its dialect
        return answer_error(request, error)

    app.add_middleware(HostMiddleware, rules=service.host_rules, refusal=refuse)
    app.add_middleware(RequestObserverMiddleware)
    app.add_middleware(RequestIdMiddleware)
    add_error_handlers(app)
    for router in routers:
        app.include_router(router)
    describe(app, routes)


def route_of(request: Request, routes: Sequence[BaseRoute]) -> BaseRoute | None:
    """Return the route that a request would be answered by, if there is one."""
    return next((route for route in routes if route.matches(request.scope)[0] is Match.FULL), None)

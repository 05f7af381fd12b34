"""Routes of a dialect that this server does not have: a 404 that says so, and what to use."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Never

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute

from server.api.core.errors.api_errors import AbsentRouteError
from server.api.core.errors.validation import quote

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def add_absent(router: APIRouter, reasons: Mapping[str, str], route_class: type[APIRoute] = APIRoute) -> None:
    """Make a router answer for paths, and all paths below them, that the server does not have them.

    Args:
        reasons: what the server does not do, and what to use, by path.
        route_class: the class of the routes, whose errors have the form of a dialect.

    """
    for path, reason in reasons.items():
        for each in (path, path + "/{rest:path}"):
            router.add_api_route(
                each,
                _refusal(reason),
                methods=METHODS,
                include_in_schema=False,
                response_model=None,
                route_class_override=route_class,
            )


def _refusal(reason: str) -> Callable[[Request], Awaitable[Never]]:
    async def refuse(request: Request) -> Never:
        raise AbsentRouteError(f"There is no {request.method} {quote(request.scope['path'])[1:-1]}: {reason}.")

    return refuse

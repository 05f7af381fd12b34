"""Messages for requests whose path or method no route has."""

from collections.abc import Sequence
from difflib import get_close_matches

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Match

from server.api.core.errors.validation import quote

MAX_COMPARED = 100  # characters of a path
LIKENESS = 0.8  # of the path that was probably meant
ALL_ROUTES = "GET /openapi.json lists all routes."


def unknown_path(request: Request, routes: Sequence[BaseRoute]) -> str:
    """Return the message for a path that no route has: the path that was probably meant."""
    described = [each.path for each in routes if isinstance(each, APIRoute) and each.include_in_schema]
    fixed = [path for path in described if "{" not in path]
    close = get_close_matches(request.scope["path"][:MAX_COMPARED], fixed, 1, LIKENESS)
    return f"There is no {_asked(request)}: " + (f"did you mean {close[0]}?" if close else ALL_ROUTES)


def unknown_method(request: Request, routes: Sequence[BaseRoute]) -> str:
    """Return the message for a method that a path does not have: those that it has."""
    there = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    methods = sorted({method for route in there if isinstance(route, APIRoute) for method in route.methods or ()})
    return f"There is no {_asked(request)}: use {' or '.join(methods) or 'GET'}."


def _asked(request: Request) -> str:
    return f"{request.method} {quote(request.scope['path'])[1:-1]}"

"""The routes of an app, and the roles that may call them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from server.api.core.service.guard import Guard


def leaves(routes: Sequence[BaseRoute]) -> Iterator[tuple[str, BaseRoute]]:
    """Yield all routes with their paths; newer versions of FastAPI do not flatten included routers."""
    for route in routes:
        if (included := getattr(route, "original_router", None)) is not None:
            yield from leaves(included.routes)
        else:
            yield route.path, route


def roles(route: BaseRoute) -> list[str]:
    """Return the roles of a route's guards."""
    dependencies = [each.dependency for each in route.dependencies] if isinstance(route, APIRoute) else []
    return [guard.role for guard in dependencies if isinstance(guard, Guard)]

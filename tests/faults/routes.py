"""The routes of an app and whom they let in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from server.api.auth import Guard


def leaves(routes: Sequence[BaseRoute]) -> Iterator[tuple[str, BaseRoute]]:
    """All routes with their paths; newer versions of FastAPI keep the routers that were included as they are."""
    for route in routes:
        if (included := getattr(route, "original_router", None)) is not None:
            yield from leaves(included.routes)
        else:
            yield route.path, route


def roles(route: BaseRoute) -> list[str]:
    """Of its guards."""
    dependencies = [each.dependency for each in route.dependencies] if isinstance(route, APIRoute) else []
    return [guard.role for guard in dependencies if isinstance(guard, Guard)]

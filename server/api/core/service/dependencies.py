"""Dependencies of routes."""

from typing import Annotated, cast

from fastapi import Depends, Request

from server.api.core.service.service import Service


async def service_of(request: Request) -> Service:
    """Return the service. This is a coroutine, because FastAPI would run a plain function in a thread."""
    return cast("Service", request.app.state.service)


ServiceDep = Annotated[Service, Depends(service_of)]

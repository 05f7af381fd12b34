"""What routes ask FastAPI for."""

from typing import Annotated, cast

from fastapi import Depends, Request

from server.api.service import Service


async def service_of(request: Request) -> Service:
    """A coroutine, because FastAPI would take a plain function to a thread of its own."""
    return cast("Service", request.app.state.service)


ServiceDep = Annotated[Service, Depends(service_of)]

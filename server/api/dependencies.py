"""What routes ask FastAPI for."""

from typing import Annotated, cast

from fastapi import Depends, Request

from server.api.service import Service


def service_of(request: Request) -> Service:
    return cast("Service", request.app.state.service)


ServiceDep = Annotated[Service, Depends(service_of)]

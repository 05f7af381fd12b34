"""``/v1/history``: the last hour of the totals that live views show."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from server.api.core.service.dependencies import ServiceDep
from server.api.core.service.guard import AdminDep

router = APIRouter(prefix="/v1/history", tags=["history"], dependencies=[AdminDep])


# A plain function, which FastAPI runs in a thread: an hour takes a while to encode.
@router.get("")
def get_history(service: ServiceDep, after: Annotated[float, Query(allow_inf_nan=False, ge=0)] = 0) -> JSONResponse:
    """Return a point for each interval, the oldest first; ``after`` is a Unix time, for those that are later."""
    return JSONResponse(service.history(after))

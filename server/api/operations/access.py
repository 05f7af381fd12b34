"""``/v1/access``: what the sender of a request may use, so that a page shows no panel that the server would refuse."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from server.api.core.access.authentication import Role, refusal
from server.api.core.service.dependencies import ServiceDep
from server.engine.interface import JsonObject

router = APIRouter(tags=["operations"])


@router.get("/v1/access")
async def access(request: Request, service: ServiceDep) -> JSONResponse:
    """Tell for each class of routes whether it would accept the request's key, and if not, with which error."""

    def of(role: Role) -> JsonObject:
        error = refusal(request, service.keys, role)
        if error is None:
            return {"allowed": True, "status": None, "message": None}
        return {"allowed": False, "status": error.status_code, "message": str(error)}

    return JSONResponse({"object": "access", "user": of("user"), "admin": of("admin")})

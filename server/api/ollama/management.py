"""Routes by which Ollama's clients change its models; this server serves the model that it was started with."""

from typing import Annotated, NoReturn

from fastapi import APIRouter

from server.api.core.service.guard import UserDep
from server.api.ollama.body import OllamaBody, OllamaModel
from server.api.ollama.errors import ERRORS, ModelManagementError, OllamaRoute

REFUSAL = (
    "This server serves the model that it was started with, and does not {} models: start another with "
    "'greenroom serve MODEL'."
)

router = APIRouter(tags=["ollama"], dependencies=[UserDep], route_class=OllamaRoute, responses=ERRORS)


class ManagementRequest(OllamaModel):
    """A request that is refused whatever it holds."""


ManagementBody = Annotated[ManagementRequest, OllamaBody(ManagementRequest)]


@router.post("/api/pull", response_model=None)
async def pull(_body: ManagementBody) -> NoReturn:
    raise ModelManagementError(REFUSAL.format("download"))


@router.post("/api/push", response_model=None)
async def push(_body: ManagementBody) -> NoReturn:
    raise ModelManagementError(REFUSAL.format("upload"))


@router.post("/api/create", response_model=None)
async def create(_body: ManagementBody) -> NoReturn:
    raise ModelManagementError(REFUSAL.format("create"))


@router.post("/api/copy", response_model=None)
async def copy(_body: ManagementBody) -> NoReturn:
    raise ModelManagementError(REFUSAL.format("copy"))


@router.delete("/api/delete", response_model=None)
async def delete() -> NoReturn:
    raise ModelManagementError(REFUSAL.format("delete"))

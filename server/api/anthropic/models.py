"""``/v1/models`` for Anthropic's clients, which send the header ``anthropic-version``; all others get OpenAI's form."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from starlette.routing import Match
from starlette.types import Scope

from server.api.anthropic.errors import AnthropicRoute
from server.api.core.errors.api_errors import InvalidRequestError
from server.api.core.errors.validation import quote
from server.api.core.requests.loaded_model import LoadedModel
from server.api.core.service.dependencies import ServiceDep
from server.api.core.service.guard import UserDep
from server.engine.interface import JsonObject

VERSION_HEADER = b"anthropic-version"
MAX_PAGE, DEFAULT_PAGE = 1000, 20  # Anthropic's


class AnthropicClientRoute(AnthropicRoute):
    """A route for Anthropic's clients only, on a path that another dialect has, too."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if not any(name == VERSION_HEADER for name, _ in scope.get("headers", ())):
            return Match.NONE, {}
        return super().matches(scope)


# The description has each path once, in OpenAI's form.
router = APIRouter(
    prefix="/v1/models", dependencies=[UserDep], route_class=AnthropicClientRoute, include_in_schema=False
)


@router.get("")
async def list_models(
    service: ServiceDep,
    after_id: str | None = None,
    before_id: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
) -> JSONResponse:
    names, has_more = page_of(service.model_names(), after_id, before_id, limit)
    return JSONResponse(
        {
            "data": [info(name, service.loaded_model(name)) for name in names],
            "has_more": has_more,
            "first_id": names[0] if names else None,
            "last_id": names[-1] if names else None,
        }
    )


@router.get("/{name:path}")  # the id of a repository contains a slash
async def get_model(name: str, service: ServiceDep) -> JSONResponse:
    return JSONResponse(info(name, service.loaded_model(name)))


def info(name: str, model: LoadedModel) -> JsonObject:
    """Return Anthropic's model object for a name or an alias."""
    return {
        "type": "model",
        "id": name,
        "display_name": model.name,
        "created_at": datetime.fromtimestamp(model.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": model.engine.max_model_len,
        "max_tokens": model.engine.max_model_len,
    }


def page_of(names: Sequence[str], after: str | None, before: str | None, limit: int) -> tuple[Sequence[str], bool]:
    """Return up to ``limit`` names between two others, and whether there are more.

    Raises:
        InvalidRequestError: there is no such name to begin or end at.

    """
    start = 0 if after is None else _index(names, after, "after_id") + 1
    end = len(names) if before is None else _index(names, before, "before_id")
    between = names[start:end]
    is_backwards = before is not None and after is None
    return (between[-limit:] if is_backwards else between[:limit]), len(between) > limit


def _index(names: Sequence[str], name: str, param: str) -> int:
    if name not in names:
        raise InvalidRequestError(f"'{param}' must be the 'id' of a listed model, got {quote(name)}.", param)
    return names.index(name)

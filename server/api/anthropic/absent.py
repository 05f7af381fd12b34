"""Anthropic's routes that this server does not have."""

from fastapi import APIRouter

from server.api.anthropic.errors import AnthropicRoute
from server.api.anthropic.models import AnthropicClientRoute
from server.api.core.errors.absent_routes import add_absent
from server.api.core.service.guard import UserDep

router = APIRouter(dependencies=[UserDep])

add_absent(
    router,
    {
        "/v1/messages/batches": "this server runs no batches; send the messages one by one to /v1/messages, and it "
        "computes them together"
    },
    AnthropicRoute,
)
add_absent(
    router,
    {
        "/v1/files": "this server stores no files; send text in a 'document' block, and images as base64",
        "/v1/skills": "this server runs no skills; send their text as 'system'",
    },
    AnthropicClientRoute,
)

"""Tools that OpenAI or Anthropic runs itself: the server has none of them, so it refuses them or leaves them out.

The ValueError of a validator says what the value must be; ``server.api.core.errors.validation`` puts the field's name
before it.
"""

import re
from collections.abc import Sequence
from typing import Annotated

from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from server.api.core.bodies.ignored_names import IgnoredNames
from server.api.core.errors.validation import quote

IGNORED_TOOLS_HEADER = "X-Greenroom-Ignored-Tools"

# Tools that a request has only if its author wants them. Agents offer others, such as web_search, unasked.
REFUSED = re.compile(r"(file_search|code_interpreter|code_execution|computer|mcp|web_fetch)(_.*)?", re.DOTALL)
WEB_SEARCH = re.compile(r"web_search(_.*)?", re.DOTALL)


class OtherTool(BaseModel):
    """A tool that OpenAI or Anthropic runs itself, or that is no function; it is left out or refused."""

    model_config = ConfigDict(strict=True)

    type: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


def is_hosted(kind: str) -> bool:
    """Return True for a type of tools that OpenAI or Anthropic runs itself."""
    return bool(REFUSED.fullmatch(kind) or WEB_SEARCH.fullmatch(kind))


def check_hosted(types: Sequence[str], *, has_functions: bool) -> None:
    """Refuse tools that the server does not have, unless it may leave them out beside functions.

    Raises:
        ValueError: it refuses one.

    """
    refused = [each for each in types if not has_functions or REFUSED.fullmatch(each)]
    if refused:
        raise ValueError(
            f"can't hold the type {quote(refused[0])}, because this server runs no tools itself: offer functions, and "
            "run them in the client"
        )


def name_ignored(response: Response, types: Sequence[str], ignored_tools: IgnoredNames) -> Response:
    """Name the types of tools that were left out in the log, and in a header of the response."""
    ignored_tools.note(types)
    if types:
        response.headers[IGNORED_TOOLS_HEADER] = ", ".join(types)
    return response

"""System messages behind other messages, for chat templates that do not take them there.

Claude Code and Codex CLI send such messages; many templates refuse them or show the first system message only.
"""

from collections.abc import Sequence
from typing import Any

Messages = Sequence[dict[str, Any]]


def has_later_system(messages: Messages) -> bool:
    """Return True if a system message follows one of another role."""
    roles = [message["role"] for message in messages]
    first_other = next((place for place, role in enumerate(roles) if role != "system"), len(roles))
    return "system" in roles[first_other:]


def later_system_as_user(messages: Messages) -> list[dict[str, Any]]:
    """Make text of the user from system messages behind others; it joins the user's messages around it."""
    joined: list[dict[str, Any]] = []
    is_begun = was_later = False
    for message in messages:
        is_begun = is_begun or message["role"] != "system"
        is_later = is_begun and message["role"] == "system"
        here = message | {"role": "user"} if is_later else message
        if (is_later or was_later) and joined and joined[-1]["role"] == here["role"] == "user":
            joined[-1] = joined[-1] | {"content": _both(joined[-1]["content"], here["content"])}
        else:
            joined.append(here)
        was_later = is_later
    return joined


def _both(first: str | list[Any], second: str | list[Any]) -> str | list[Any]:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return _parts(first) + _parts(second)


def _parts(content: str | list[Any]) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content

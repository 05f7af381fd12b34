"""Conversion of JSON to typed results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from client.errors import InvalidReplyError

T = TypeVar("T")


def dataclass_from(kind: type[T], body: Mapping[str, Any], **others: Any) -> T:
    """Build a dataclass from the members of a JSON object, and from ``others``; unknown members are ignored.

    Raises:
        KeyError: If a member without a default is missing.
    """
    names = [
        field.name
        for field in fields(kind)  # type: ignore[arg-type]
        if field.name not in others and (field.name in body or field.default is MISSING)
    ]
    return kind(**{name: body[name] for name in names}, **others)


@contextmanager
def reply_errors(reply_name: str) -> Iterator[None]:
    """Raise the errors of parsing a reply as ``InvalidReplyError``.

    Raises:
        InvalidReplyError: If the reply has an unexpected shape.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InvalidReplyError(
            f"the reply is not a valid {reply_name} of a Greenroom server: {type(error).__name__}: {error}"
        ) from error

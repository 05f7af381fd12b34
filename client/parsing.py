"""From JSON to typed results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

from client.errors import InvalidReplyError

T = TypeVar("T")


def record(kind: type[T], body: Mapping[str, Any], **others: Any) -> T:
    """A dataclass whose fields are members of a JSON object, or given as ``others``; more members are ignored.

    Raises:
        KeyError: a member is missing.
    """
    names = [field.name for field in fields(kind) if field.name not in others]  # type: ignore[arg-type]
    return kind(**{name: body[name] for name in names}, **others)


@contextmanager
def expecting(what: str) -> Iterator[None]:
    """Say of an answer that can't be read what it should have been.

    Raises:
        InvalidReplyError: the block met a wrong shape.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InvalidReplyError(
            f"the answer is no {what} of a Greenroom server: {type(error).__name__}: {error}"
        ) from error

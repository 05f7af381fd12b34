"""Answers of a hub that its library can't read, which it lets end in any exception."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # for HTTPError
    HFValidationError,
    HTTPError,  # from the HTTP client that the hub's library uses
)

from server.model.errors import ModelError
from server.redaction import redact

MAX_QUOTED = 200  # characters of an exception
NONSENSE = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@contextmanager
def readable_answers() -> Iterator[None]:
    """Turn the exceptions of an answer that can't be read into one that says so.

    Raises:
        ModelError: the hub answers with nonsense.
    """
    try:
        yield
    except (HTTPError, HFValidationError, OSError):  # some are ValueErrors, too
        raise
    except NONSENSE as error:
        hub, found = redact(constants.ENDPOINT), redact(str(error))[:MAX_QUOTED]
        raise ModelError(
            f"an answer of {hub} can't be read ({type(error).__name__}: {found}); check HF_ENDPOINT, or try again"
        ) from error

"""Sentences for what a hub refuses, and for answers that its library lets end in any exception."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # for HTTPError
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # from the HTTP client that the hub's library uses
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from server.model.checkpoint.hub_answers import check_answers
from server.model.checkpoint.local_files import split_tag
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


@contextmanager
def hub_errors(model: str, revision: str | None, action: str) -> Iterator[None]:
    """Turn the hub's exceptions into a ``ModelError`` of one line.

    Args:
        action: the action that may fail, such as "downloading".
    """
    check_answers()
    repository, tag = split_tag(model)
    try:
        with readable_answers():
            yield
    except GatedRepoError as error:
        raise ModelError(
            f"{model} is gated: accept its licence at {redact(constants.ENDPOINT)}/{repository}, then run "
            "`hf auth login` (or set HF_TOKEN)"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no model {model}, or it is private; check the name, or run `hf auth login` (or set HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{model} has no revision {revision}; check --revision") from error
    except LocalEntryNotFoundError as error:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub can't be reached"
        wanted = f"{repository} --include '*{tag}*'" if tag else repository
        raise ModelError(
            f"{model} is not a local folder, the hub cache {constants.HF_HUB_CACHE} does not have all its files, and "
            f"{reason}; run `hf download {wanted}` on a machine with network and set HF_HOME to its cache, or give a "
            "local folder"
        ) from error
    except HFValidationError as error:
        raise ModelError(
            f"there is no folder {model}, and it is not a valid hub name; give a local folder or OWNER/NAME"
        ) from error
    except (HTTPError, HfHubHTTPError, OSError) as error:
        reason = redact(str(error)).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{action} {model} failed: {reason}; run the same command again to continue") from error

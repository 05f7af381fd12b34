"""The audit log: what administrators changed, and what policies refused."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from server.api.core.access.caller import current_caller
from server.observability.logging import AUDIT

log = logging.getLogger(AUDIT)


def audit(action: str, outcome: str = "done", **fields: Any) -> None:
    """Write a line with the caller of the current request, without the fields that are None.

    Args:
        action: the thing and what was done to it, such as ``adapter.load``.
        outcome: ``done``, ``refused`` or ``failed``.
        fields: ``who`` takes the place of the caller.
    """
    caller = current_caller()
    line = {"who": caller.id, "outcome": outcome, **fields, "request_id": caller.request_id}
    log.info(action, extra={"fields": {name: value for name, value in line.items() if value is not None}})


@contextmanager
def audited(action: str, **fields: Any) -> Iterator[dict[str, Any]]:
    """Write a line when the context ends, with the error if it failed.

    Yields:
        More fields; ``action`` takes the place of the argument.
    """
    more: dict[str, Any] = {}
    try:
        yield more
    except Exception as error:
        audit(action, "failed", **fields, error=str(error))
        raise
    audit(more.pop("action", action), **fields, **more)

"""Warnings about parts of request bodies that the server ignores: one for each name."""

import logging
from collections.abc import Iterable

from server.api.core.errors.validation import quote

MAX_NAMES = 100  # clients choose the names: they must not fill the memory or the log

logger = logging.getLogger(__name__)


class IgnoredNames:
    """Logs each name once.

    Args:
        message: the log line, with %s for the name.

    """

    def __init__(self, message: str) -> None:
        self._message = message
        self._seen: set[str] = set()

    def note(self, names: Iterable[str]) -> None:
        """Log the new names, up to ``MAX_NAMES`` in total."""
        for name in names:
            if self._is_new(name):
                logger.warning(self._message, quote(name))

    def note_known(self, names: Iterable[str], why: str) -> None:
        """Log the new ones of fields that are known and ignored, with the reason."""
        for name in names:
            if self._is_new(name):
                logger.warning("Ignoring the field %s of a request body: %s.", quote(name), why)

    def _is_new(self, name: str) -> bool:
        quoted = quote(name)
        if quoted in self._seen or len(self._seen) == MAX_NAMES:
            return False
        self._seen.add(quoted)
        return True

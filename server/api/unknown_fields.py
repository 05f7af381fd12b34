"""Fields of request bodies that this server does not know are accepted; an operator hears of each once."""

import logging
from collections.abc import Iterable

from server.api.validation import quote

MAX_NAMES = 100  # clients choose the names, so they must not fill the memory or the log

logger = logging.getLogger(__name__)


class UnknownFields:
    """The names seen so far."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def note(self, names: Iterable[str]) -> None:
        """Log the names that are new, until there have been ``MAX_NAMES``."""
        for name in names:
            quoted = quote(name)
            if quoted in self._seen or len(self._seen) == MAX_NAMES:
                continue
            self._seen.add(quoted)
            logger.warning("Ignored the unknown field %s of a request's body.", quoted)

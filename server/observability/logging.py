"""The log, on standard error."""

from __future__ import annotations

import logging
import sys

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
COMMAND = "greenroom: %(message)s"  # of a command that ends by itself
CHATTERERS = ("httpx", "httpx2")  # a line for every request that looks a model up


def set_up_logging(level: str, form: str = TEXT) -> None:
    """Begin the log of this process.

    Args:
        level: of the least that is written, as "info".
        form: of its lines.
    """
    logging.basicConfig(level=level.upper(), stream=sys.stderr, format=form)
    if level != "debug":
        for name in CHATTERERS:
            logging.getLogger(name).setLevel(logging.WARNING)

"""The log, on standard error."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from tqdm import tqdm

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
COMMAND = "greenroom: %(message)s"  # of a command that ends by itself
CHATTERERS = ("httpx", "httpx2")  # a line for every request that looks a model up


class BesideBars(logging.StreamHandler[TextIO]):
    """Lines above whatever bars are shown."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), self.stream)


def set_up_logging(level: str, form: str = TEXT) -> None:
    """Begin the log of this process.

    Args:
        level: of the least that is written, as "info".
        form: of its lines.
    """
    handler = BesideBars() if sys.stderr.isatty() else logging.StreamHandler()
    logging.basicConfig(level=level.upper(), handlers=[handler], format=form)
    if level != "debug":
        for name in CHATTERERS:
            logging.getLogger(name).setLevel(logging.WARNING)

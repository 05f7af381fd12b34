"""Session of the hub's library, with limits of what it reads of answers."""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils._http import default_client_factory

from server.outgoing.bounded_answers import AnswerLimits, bound
from server.outgoing.reach import Reach

LIMITS = AnswerLimits(file_path=b"/resolve/")


def use_bounded_session(limits: AnswerLimits = LIMITS) -> None:
    """Have the library make its connections with limits, and log as all others do: it writes signed links itself."""

    def make() -> Any:  # a client of httpx, or of httpx2 since the library's version 2
        client = default_client_factory()
        bound(client, limits, Reach(urlsplit(constants.ENDPOINT).hostname or ""))
        return client

    set_client_factory(make)
    logging.getLogger("huggingface_hub").handlers.clear()

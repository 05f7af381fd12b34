"""Session of the hub's library, with limits of what it reads of answers."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants
from huggingface_hub.utils._http import default_client_factory

from server.http_client.bounded_answers import AnswerLimits, bound
from server.http_client.reach import Reach

LIMITS = AnswerLimits(file_path=b"/resolve/")


def bounded_client() -> Any:
    """Return a client as the library makes it, of httpx or, since its version 2, of httpx2, with limits."""
    client = default_client_factory()
    bound(client, LIMITS, Reach(urlsplit(constants.ENDPOINT).hostname or ""))
    return client

"""Cancels work when its client leaves."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from server.api.core.errors.api_errors import ClientDisconnectedError

T = TypeVar("T")


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of ``work``, or cancel it when the client leaves. The request's body must have been read.

    Raises:
        ClientDisconnectedError: the client left.

    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_client_leaves(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnectedError("The client closed the request.")
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _client_leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

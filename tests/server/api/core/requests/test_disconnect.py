"""Work is cancelled when its client leaves."""

import asyncio

import anyio
import pytest

from server.api.core.errors.api_errors import ClientDisconnectedError
from server.api.core.requests.disconnect import unless_client_leaves


async def stays():
    await asyncio.Event().wait()


async def leaves():
    return {"type": "http.disconnect"}


def test_result_is_returned_to_a_client_that_stays():
    async def work():
        return 7

    assert anyio.run(unless_client_leaves, stays, work()) == 7


def test_failure_is_raised_if_the_client_stays():
    async def work():
        raise KeyError("a")

    with pytest.raises(KeyError):
        anyio.run(unless_client_leaves, stays, work())


def test_work_is_cancelled_when_the_client_leaves():
    ends = []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("cancelled")

    with pytest.raises(ClientDisconnectedError):
        anyio.run(unless_client_leaves, leaves, work())
    assert ends == ["cancelled"]

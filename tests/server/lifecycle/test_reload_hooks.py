"""The functions that SIGHUP and changed files call."""

from __future__ import annotations

import asyncio
import logging

import pytest

from server.lifecycle.reload_hooks import SIGHUP, ReloadHooks


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def fail(_: str) -> str:
    raise ValueError("it is empty")


def test_each_outcome_is_a_line_and_a_failure_keeps_no_other_from_being_loaded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hooks = ReloadHooks()
    hooks.add("policies", fail)
    hooks.add("keys", lambda _: "3 keys")
    asyncio.run(hooks.run(SIGHUP))
    assert caplog.messages == [
        "cannot reload the policies, which stay as they are: it is empty",
        "reloaded the keys: 3 keys",
    ]


def test_with_nothing_to_reload_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(ReloadHooks().run(SIGHUP))
    assert caplog.messages == ["SIGHUP: there is nothing to reload"]


def test_two_runs_follow_each_other() -> None:
    running: list[str] = []

    def reload(_: str) -> str:
        running.append("begin")
        running.append("end")
        return "done"

    async def both() -> None:
        hooks = ReloadHooks()
        hooks.add("keys", reload)
        await asyncio.gather(hooks.run(SIGHUP), hooks.run(SIGHUP))

    asyncio.run(both())
    assert running == ["begin", "end"] * 2

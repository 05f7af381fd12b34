"""Runs traces in this process, each on a server of its own, against one reference server for each model."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from tests.fuzz.player import Asked, Judge, Player, check_health, is_exact
from tests.fuzz.subjects import make_subject
from tests.fuzz.target import (
    IDLE_SECONDS,
    FindingError,
    Holdings,
    Target,
    load_weights,
    serving_alone,
    serving_command,
    serving_in_process,
    unload_weights,
)
from tests.fuzz.trace import Trace

Serving = Callable[[Path, dict[str, Any]], AbstractContextManager[Target]]
SERVINGS: dict[str, Serving] = {"engine": serving_in_process, "command": serving_command}

ALONE = {"threads": 1, "adapter_memory": "8MiB", "host_expert_memory": "100%", "kv_cache_memory": "8MiB"}


class Session:
    """Plays traces one after the other.

    Args:
        root: the folder of the subjects.
    """

    def __init__(self, root: Path):
        self._root, self._stack = root, ExitStack()
        self._judges: dict[tuple[str, bool], Judge] = {}
        self._has_warmed_up = False

    def run(self, trace: Trace, serving: str = "engine") -> None:
        """Play a trace and check everything.

        Raises:
            FindingError: something is wrong.
        """
        judge = self._judge(trace)
        subject = make_subject(trace.family, self._root)
        gc.collect()
        before = Holdings.take()
        asked = _play(trace, subject, SERVINGS[serving])
        # The first server of a process opens what stays open.
        if self._has_warmed_up:
            _check_left(before)
        self._has_warmed_up = True
        judge.check(asked)

    def close(self) -> None:
        self._stack.close()

    def _judge(self, trace: Trace) -> Judge:
        settings = {"deterministic": trace.settings["deterministic"], **ALONE}
        key = (trace.family, trace.settings["deterministic"])
        if key not in self._judges:
            reference = self._stack.enter_context(serving_alone(make_subject(trace.family, self._root), settings))
            load_weights(reference.url)
            self._judges[key] = Judge(reference, is_exact=is_exact(trace))
        return self._judges[key]


def _check_left(before: Holdings) -> None:
    """Wait until the threads and files of a server are gone: some end after it.

    Raises:
        FindingError: some stay.
    """
    deadline, always = time.monotonic() + IDLE_SECONDS, None
    while excess := Holdings.take().excess_over(before):
        always = set(excess) if always is None else always & set(excess)
        if time.monotonic() > deadline:
            raise FindingError(f"left behind: {excess}; all the time: {sorted(always)}")
        time.sleep(0.05)
        gc.collect()


def _play(trace: Trace, subject: Path, serving: Serving) -> list[Asked]:
    """Play a trace on a server of its own; nothing refers to the server afterwards."""
    with serving(subject, trace.settings) as target:
        asked = asyncio.run(Player(target).play(trace.events))
        unload_weights(target.url)
        target.check()
        asyncio.run(check_health(target))
    return asked

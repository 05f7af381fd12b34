"""Runs traces in forked processes, which may hang or die, and which need not import the server again."""

from __future__ import annotations

import faulthandler
import itertools
import logging
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz.session import Session
from tests.fuzz.target import FindingError
from tests.fuzz.trace import Trace

PATIENCE_SECONDS = 240.0  # of one trace; the player itself gives up after half of it
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Result:
    """The outcome of a trace; ``finding`` is empty if all was well."""

    trace: Trace
    serving: str
    seconds: float
    finding: str


def run_all(
    jobs: Iterable[tuple[Trace, str]], root: Path, report: Callable[[Result], bool], most_jobs: int = 40
) -> list[Result]:
    """Run traces until the first finding, and return it in a list, which is empty if there is none.

    A process runs ``most_jobs`` traces at most. This one must have no other threads.

    Args:
        jobs: traces, each with the kind of its server.
        report: called with each result; returns False to end.
    """
    waiting = iter(jobs)
    while part := list(itertools.islice(waiting, most_jobs)):
        for result in _run_part(part, root):
            goes_on = report(result)
            if result.finding:
                return [result]
            if not goes_on:
                return []
    return []


def run_one(trace: Trace, serving: str, root: Path) -> Result:
    """Run one trace in a process of its own."""
    (result,) = _run_part([(trace, serving)], root)
    return result


def _run_part(part: list[tuple[Trace, str]], root: Path) -> Iterable[Result]:
    ours, theirs = FORK.Pipe(duplex=False)
    with tempfile.TemporaryFile("w+") as log:
        child = FORK.Process(target=_work, args=(part, root, theirs, log.fileno()))
        child.start()
        theirs.close()
        try:
            for trace, serving in part:
                begun = time.monotonic()
                finding = _wait(ours)
                if finding is None:
                    log.seek(0)
                    finding = f"no answer from the process of the trace; it wrote {log.read()[-20000:]}"
                yield Result(trace, serving, time.monotonic() - begun, finding)
                if finding:
                    return
        finally:
            child.kill()
            child.join()


def _wait(pipe: Connection) -> str | None:
    """Return the finding of the next trace; None if the process has died or does not answer."""
    try:
        return str(pipe.recv()) if pipe.poll(PATIENCE_SECONDS) else None
    except EOFError:
        return None


def _work(part: list[tuple[Trace, str]], root: Path, pipe: Connection, log: int) -> None:
    os.dup2(log, sys.stderr.fileno())
    logging.basicConfig(level=logging.WARNING)
    session = Session(root)
    for trace, serving in part:
        faulthandler.dump_traceback_later(PATIENCE_SECONDS - 20)
        try:
            session.run(trace, serving)
        except FindingError as error:
            pipe.send(str(error) or "finding")
        except Exception:  # noqa: BLE001  such as one of the server's own
            pipe.send(traceback.format_exc())
        else:
            pipe.send("")
    faulthandler.cancel_dump_traceback_later()
    session.close()

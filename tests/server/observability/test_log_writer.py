"""The thread that writes the log, with a real pipe."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Event

import pytest

from server.observability.log_writer import BackgroundHandler, write_fully


class Pipe:
    """A pipe whose reader reads when asked."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def write(self, line: str) -> None:
        write_fully(self.writer, f"{line}\n".encode())

    def fill(self) -> None:
        """Fill the pipe with zeros."""
        os.set_blocking(self.writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(self.writer, bytes(1 << 10))
        os.set_blocking(self.writer, True)

    def read_until(self, end: str) -> str:
        text = ""
        while not text.endswith(end):
            text += os.read(self.reader, 1 << 16).decode()
        return text


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe.reader)
    os.close(pipe.writer)


def logger_of(write: Callable[[str], None], max_bytes: int = 1 << 20) -> tuple[logging.Logger, BackgroundHandler]:
    handler, logger = BackgroundHandler(write, max_bytes), logging.Logger("test")  # noqa: LOG001  each test has its own
    logger.addHandler(handler)
    return logger, handler


def test_lines_keep_their_order(pipe: Pipe) -> None:
    logger, handler = logger_of(pipe.write)
    for number in range(100):
        logger.info("line %d", number)
    handler.flush()
    assert pipe.read_until("line 99\n").splitlines() == [f"line {number}" for number in range(100)]


def test_a_full_pipe_drops_lines_counts_them_and_tells_when_it_is_read(pipe: Pipe) -> None:
    pipe.fill()
    logger, handler = logger_of(pipe.write, max_bytes=20_000)
    for number in range(200):
        logger.info("%03d %s", number, "x" * 996)
    assert handler.num_dropped == 180
    text = pipe.read_until("read them: 180\n").lstrip("\0")
    *lines, told = text.splitlines()
    assert [line[:3] for line in lines] == [f"{number:03d}" for number in range(20)]
    assert told == "lines of the log that were dropped, because nobody read them: 180"
    logger.info("again")
    assert pipe.read_until("again\n") == "again\n"


def test_a_line_longer_than_all_that_may_wait_is_written_alone(pipe: Pipe) -> None:
    logger, _ = logger_of(pipe.write, max_bytes=10)
    logger.info("more than ten characters")
    assert pipe.read_until("characters\n") == "more than ten characters\n"


def test_a_flush_ends_although_nobody_reads() -> None:
    is_over = Event()
    logger, handler = logger_of(lambda _: is_over.wait(60) and None)
    logger.info("stuck")
    handler.flush()
    is_over.set()


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device"), ValueError("closed")])
def test_a_line_that_can_not_be_written_is_counted(error: Exception) -> None:
    def fail(_: str) -> None:
        raise error

    logger, handler = logger_of(fail)
    logger.info("lost")
    handler.flush()
    assert handler.num_dropped == 1


def test_a_message_with_wrong_arguments_is_a_line_and_no_traceback(
    pipe: Pipe, capsys: pytest.CaptureFixture[str]
) -> None:
    logger, _ = logger_of(pipe.write)
    logger.info("%d lines", "many")
    assert "can't be formatted" in pipe.read_until("'%d lines'\n")
    assert capsys.readouterr().err == ""


def test_a_pipe_that_another_process_made_non_blocking_is_waited_for(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    logger, handler = logger_of(pipe.write)
    logger.info("x" * 100_000)
    assert len(pipe.read_until("x\n")) == 100_001
    handler.flush()
    assert handler.num_dropped == 0

"""Panics of libraries written in Rust (tokenizers, llguidance), as errors that ``except Exception`` catches.

A panic reaches Python as ``pyo3_runtime.PanicException``, a ``BaseException``. Each library has its own class of that
name, and none can be imported.
"""

from __future__ import annotations

import asyncio
from contextlib import ContextDecorator
from types import TracebackType

ENDINGS = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)  # these end what runs, and must pass


class PanicError(RuntimeError):
    """A library panicked."""


class _PanicsAsErrors(ContextDecorator):
    """See ``panics_as_errors``. It keeps nothing, so that any number of threads may be in it."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, (Exception, *ENDINGS)):
            return
        if not isinstance(error, BaseExceptionGroup) or error.subgroup(ENDINGS) is None:
            raise PanicError(f"a library panicked: {error}") from error


_PANICS_AS_ERRORS = _PanicsAsErrors()


def panics_as_errors() -> _PanicsAsErrors:
    """Return a context, or a decorator, that raises a ``PanicError`` in place of a panic; other exceptions pass.

    Raises:
        PanicError: a library panicked.
    """
    return _PANICS_AS_ERRORS

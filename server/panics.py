"""Panics of libraries written in Rust (tokenizers, llguidance), as errors that ``except Exception`` catches.

A panic reaches Python as ``pyo3_runtime.PanicException``, a ``BaseException``. Each library has its own class of that
name, and none can be imported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

ENDINGS = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)  # these end what runs, and must pass


class PanicError(RuntimeError):
    """A library panicked."""


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise a ``PanicError`` in place of a panic; other exceptions pass.

    Raises:
        PanicError: a library panicked.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        is_ending = isinstance(error, ENDINGS)
        if is_ending or (isinstance(error, BaseExceptionGroup) and error.subgroup(ENDINGS) is not None):
            raise
        raise PanicError(f"a library panicked: {error}") from error

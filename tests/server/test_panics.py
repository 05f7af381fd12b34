"""A panic becomes an error; what ends a task or the process stays what it is."""

import asyncio

import pytest

from server.panics import PanicError, panics_as_errors


class Panic(BaseException):
    """As ``pyo3_runtime.PanicException``."""


@pytest.mark.parametrize("panic", [Panic("no entry"), BaseExceptionGroup("of a task group", [Panic("no entry")])])
def test_a_panic_becomes_an_error_with_its_message(panic: BaseException) -> None:
    with pytest.raises(PanicError, match=str(panic.args[0])) as caught, panics_as_errors():
        raise panic
    assert caught.value.__cause__ is panic


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_other_exceptions_pass(kind: type[BaseException]) -> None:
    with pytest.raises(kind), panics_as_errors():
        raise kind


def test_a_group_with_an_interrupt_passes() -> None:
    group = BaseExceptionGroup("both", [Panic(), KeyboardInterrupt()])
    with pytest.raises(BaseExceptionGroup) as caught, panics_as_errors():
        raise group
    assert caught.value is group

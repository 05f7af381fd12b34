"""Deferred work."""

from __future__ import annotations

import pytest

from server.deferred_work import DeferredWork


def test_work_behind_a_call_that_fails_stays() -> None:
    deferred, ran = DeferredWork(), []

    def fail() -> None:
        raise RuntimeError("no")

    for call in (lambda: ran.append(1), fail, lambda: ran.append(2)):
        deferred.add(call)
    with pytest.raises(RuntimeError, match="no"):
        deferred.run()
    assert ran == [1]
    deferred.run()
    assert ran == [1, 2]

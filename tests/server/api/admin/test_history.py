"""``/v1/history``, and the counts of errors in it."""

from dataclasses import astuple

import pytest

from server.api.core.access.api_keys import KeyRing, Keys
from server.api.core.errors.api_errors import RateLimitError
from server.engine.interface import GenerationFailedError, QueueFullError


@pytest.mark.parametrize(("key", "status"), [(None, 401), ("user", 403), ("admin", 200)])
def test_it_is_for_administrators(fake, ask, key, status):
    fake.service.keys = Keys(KeyRing(["user"]), KeyRing(["admin"]))
    headers = {} if key is None else {"x-api-key": key}
    assert ask("GET", "/v1/history", headers=headers).status_code == status


def test_a_client_asks_for_what_it_does_not_have(fake, ask):
    fake.service.history = lambda after: {"after": after}
    assert ask("GET", "/v1/history", params={"after": "1700000000.5"}).json() == {"after": 1700000000.5}
    assert ask("GET", "/v1/history", params={"after": "nan"}).status_code == 400


def counts(fake):
    """Return the numbers of errors, of 429s and of other errors of clients."""
    return astuple(fake.service.responses)


def test_answers_are_no_errors(fake, complete):
    complete(max_tokens=2)
    complete(max_tokens=2, stream=True)
    assert counts(fake) == (0, 0, 0)


def test_a_failed_answer_and_a_failed_stream_are_errors(fake, complete):
    fake.engine.failure = GenerationFailedError("the expert can't be read")
    assert complete().status_code == 500
    assert complete(stream=True).status_code == 200
    assert counts(fake) == (2, 0, 0)


def test_429_and_other_refusals_are_counted_apart(fake, complete):
    fake.engine.refusals[0] = QueueFullError("too many requests wait")
    assert complete().status_code == RateLimitError.status_code
    assert complete(max_tokens="many").status_code == 400
    assert counts(fake) == (0, 1, 1)

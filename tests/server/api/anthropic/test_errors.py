"""Errors of the routes in Anthropic's dialect, whatever raises them."""

from __future__ import annotations

import pytest
from starlette.exceptions import HTTPException

from server.api.core.errors.api_errors import APIError
from server.engine.interface import DeadlineExceededError, EngineUnavailableError, QueueFullError

BODY = {"max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]}


class StatusError(APIError):
    """Return an error with any status."""

    def __init__(self, status_code: int) -> None:
        super().__init__("no")
        self.status_code = status_code


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
@pytest.mark.parametrize("is_ours", [True, False])
def test_each_status_has_a_type(fake, post, monkeypatch, status, kind, is_ours):
    error = StatusError(status) if is_ours else HTTPException(status)

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(fake.service, "accepting_model", refuse)
    response = post("/v1/messages", BODY)
    assert response.status_code == status
    assert response.json()["type"] == "error"
    assert response.json()["error"]["type"] == kind


@pytest.mark.parametrize(
    ("refusal", "status", "kind"),
    [
        (QueueFullError("full"), 429, "rate_limit_error"),
        (EngineUnavailableError("stopping"), 503, "overloaded_error"),
        (DeadlineExceededError("late"), 504, "timeout_error"),
    ],
)
def test_errors_of_the_engine(fake, post, refusal, status, kind):
    fake.engine.refusals = {0: refusal}
    response = post("/v1/messages", BODY)
    assert (response.status_code, response.json()["error"]["type"]) == (status, kind)
    assert ("retry-after" in response.headers) == (status in {429, 503})


def test_a_model_that_is_being_loaded(fake, post):
    fake.service.model = None
    assert post("/v1/messages", BODY).json()["error"]["type"] == "overloaded_error"


def test_a_wrong_method(ask):
    response = ask("GET", "/v1/messages")
    assert response.status_code == 405
    assert response.json()["error"] == {
        "type": "invalid_request_error",
        "message": "There is no GET /v1/messages: use POST.",
    }


@pytest.mark.parametrize("content", [b"{", b"[]", b'"hello"', b"\xff"])
def test_a_body_that_is_no_object(ask, content):
    response = ask("POST", "/v1/messages", content=content, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")


def test_a_fault_of_the_server(fake, post, monkeypatch):
    monkeypatch.setattr(fake.codec, "encode_chat", None)
    response = post("/v1/messages", BODY)
    assert response.status_code == 500
    error = response.json()
    assert error["error"] == {"type": "api_error", "message": "The server failed to answer: see its log."}
    assert error["request_id"] == response.headers["x-request-id"]


def test_other_routes_keep_openais_form(post):
    assert set(post("/v1/chat/completions", {}).json()) == {"error"}
    assert set(post("/v1/messages/unheard_of", {}).json()) == {"error"}

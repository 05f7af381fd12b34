"""Every failure is answered in OpenAI's form, with the right status."""

import pytest

from server.engine.interface import (
    EngineError,
    EngineUnavailableError,
    GenerationFailedError,
    QueueFullError,
    RequestRefusedError,
)


def test_unknown_route_names_it(ask):
    response = ask("GET", "/v1/nowhere")
    assert response.status_code == 404
    assert response.json()["error"] == {
        "message": "There is no GET /v1/nowhere: GET /openapi.json lists all routes.",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


def test_wrong_method_has_an_allow_header(ask):
    response = ask("GET", "/v1/completions")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'"text"', b"3"])
def test_body_that_is_not_an_object_is_refused(ask, body):
    response = ask("POST", "/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "The body must be a JSON object, sent as application/json."


def test_body_of_another_type_is_refused(ask):
    response = ask("POST", "/v1/completions", data={"prompt": "a"})
    assert response.status_code == 415
    assert "application/json" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "body", [b"{", b'{"prompt": }', b"\xff", b'{"n": ' + b"9" * 5000 + b"}", b"[" * 100_000, b'{"prompt": "\xff"}']
)
def test_body_that_is_not_json_is_refused(ask, body):
    response = ask("POST", "/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_syntax_error_has_its_position(ask):
    response = ask("POST", "/v1/completions", content=b'{"n": 1,}', headers={"Content-Type": "application/json"})
    assert response.json()["error"]["message"].startswith("The body is not valid JSON: ")
    assert "character 8" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("refusal", "answer"),
    [
        (RequestRefusedError, (400, "no", "invalid_request_error")),
        (QueueFullError, (429, "no", "rate_limit_error")),
        (EngineUnavailableError, (503, "no", "server_error")),
        (EngineError, (500, "no", "server_error")),
    ],
)
def test_refusal_of_the_engine_has_its_status(fake, complete, refusal, answer, stream):
    """Holds for streams, too: the status is sent when the choices are accepted."""
    fake.engine.refusals = {0: refusal("no")}
    response = complete(stream=stream)
    error = response.json()["error"]
    assert (response.status_code, error["message"], error["type"]) == answer


def test_refusal_of_the_engine_names_the_field(fake, complete):
    fake.engine.refusals = {0: RequestRefusedError("no", "prompt")}
    assert complete().json()["error"]["param"] == "prompt"


def test_full_queue_has_retry_after(fake, complete):
    fake.engine.refusals = {0: QueueFullError("no")}
    assert int(complete().headers["retry-after"]) >= 1


def test_failed_generation_is_the_servers_fault(fake, complete):
    fake.engine.failure = GenerationFailedError("an expert could not be read")
    response = complete()
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "an expert could not be read"


@pytest.mark.parametrize("state", ["loading", "draining", "dead"])
def test_no_requests_are_accepted_unless_ready(fake, complete, chat, state):
    if state == "loading":
        fake.service.model = None
    fake.service.is_draining = state == "draining"
    fake.engine.is_alive = state != "dead"
    for response in (complete(), chat()):
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "service_unavailable"


def test_unknown_model_names_the_served_one(complete):
    response = complete(model="gpt-4")
    assert response.status_code == 404
    assert response.json()["error"] == {
        "message": "The model 'gpt-4' does not exist: this server serves 'org/tiny'.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }

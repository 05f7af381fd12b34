"""``/health``, ``/ready``, ``/ping`` and ``/version`` in each state of the server."""

import pytest


def test_health_is_ok_while_loading(fake, ask):
    fake.service.model = None
    response = ask("GET", "/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_health_fails_once_the_engine_is_dead(fake, ask):
    fake.engine.is_alive = False
    assert ask("GET", "/health").status_code == 503


def test_ready_when_loaded(ask):
    response = ask("GET", "/ready")
    assert (response.status_code, response.json()) == (200, {"status": "ready"})


@pytest.mark.parametrize("state", ["loading", "draining", "dead"])
def test_not_ready_reports_the_state(fake, ask, state):
    if state == "loading":
        fake.service.model = None
    fake.service.is_draining = state == "draining"
    fake.engine.is_alive = state != "dead"
    response = ask("GET", "/ready")
    assert (response.status_code, response.json()) == (503, {"status": state})


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_ping_is_answered_once_the_model_is_there(fake, ask, method):
    assert ask(method, "/ping").status_code == 200
    fake.service.model = None
    assert ask(method, "/ping").status_code == 503


def test_version(ask):
    assert ask("GET", "/version").json() == {"version": "1.2.3"}

"""The header ``X-Request-Id`` of requests and responses."""

import re

import pytest


def test_well_formed_id_is_returned(ask):
    assert ask("GET", "/health", headers={"X-Request-Id": "job-7.a_B"}).headers["x-request-id"] == "job-7.a_B"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a;b", "é".encode()])
def test_other_ids_are_replaced(ask, given):
    assert re.fullmatch("[0-9a-f]{32}", ask("GET", "/health", headers={"X-Request-Id": given}).headers["x-request-id"])


def test_errors_carry_it(ask):
    assert ask("GET", "/nowhere", headers={"X-Request-Id": "a"}).headers["x-request-id"] == "a"


def test_faults_carry_it(fake, ask):
    def fail():
        raise RuntimeError("secret")

    fake.service.metrics = fail
    response = ask("GET", "/metrics", headers={"X-Request-Id": "a"})
    assert response.headers.get_list("x-request-id") == ["a"]
    assert response.status_code == 500
    assert "secret" not in response.text

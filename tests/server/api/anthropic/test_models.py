"""``/v1/models`` for Anthropic's clients."""

import pytest

from server.setting_values import parse_alias

INFO = {
    "type": "model",
    "id": "org/tiny",
    "display_name": "org/tiny",
    "created_at": "2023-11-14T22:13:20Z",
    "lifecycle": "active",
    "max_input_tokens": 64,
    "max_tokens": 64,
}


@pytest.fixture
def get(fake, ask):
    fake.service.aliases = [parse_alias(f"{name}=org/tiny") for name in ("a", "b", "claude-*")]
    return lambda path, **params: ask("GET", path, params=params, headers={"anthropic-version": "2023-06-01"})


def test_models_have_anthropics_form(get):
    assert get("/v1/models").json() == {
        "data": [INFO, INFO | {"id": "a"}, INFO | {"id": "b"}],
        "has_more": False,
        "first_id": "org/tiny",
        "last_id": "b",
    }


def test_a_model_is_found_by_a_pattern(get):
    assert get("/v1/models/claude-opus-4").json() == INFO | {"id": "claude-opus-4"}


@pytest.mark.parametrize(
    ("params", "names", "has_more"),
    [
        ({"limit": 2}, ["org/tiny", "a"], True),
        ({"limit": 2, "after_id": "a"}, ["b"], False),
        ({"limit": 1, "before_id": "b"}, ["a"], True),
        ({"after_id": "b"}, [], False),
    ],
)
def test_pages(get, params, names, has_more):
    page = get("/v1/models", **params).json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == (names, has_more)


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": "many"}, {"after_id": "other"}, {"before_id": "other"}])
def test_bad_pages_are_refused(get, params):
    response = get("/v1/models", **params)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert f"'{next(iter(params))}'" in response.json()["error"]["message"]


def test_an_unknown_model_is_an_error_in_anthropics_form(get):
    response = get("/v1/models/other")
    assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found_error")


def test_a_wrong_method_is_refused(ask):
    assert ask("POST", "/v1/models", headers={"anthropic-version": "2023-06-01"}).status_code == 405

"""``/v1/models``."""

from server.setting_values import parse_alias

CARD = {
    "id": "org/tiny",
    "object": "model",
    "created": 1700000000,
    "owned_by": "greenroom",
    "root": "org/tiny",
    "parent": None,
    "max_model_len": 64,
    "meta": {"n_params": 0, "size": 0, "format": "", "architecture": "", "quantization": "", "tasks": ["generate"]},
}


def test_served_model_is_listed(ask):
    assert ask("GET", "/v1/models").json() == {"object": "list", "data": [CARD]}


def test_name_with_a_slash_is_found(ask):
    assert ask("GET", "/v1/models/org/tiny").json() == CARD
    assert ask("GET", "/v1/models/org%2Ftiny").json() == CARD


def test_plain_aliases_are_listed(fake, ask):
    fake.service.aliases = [parse_alias("gpt-4o=org/tiny"), parse_alias("claude-*=org/tiny")]
    assert ask("GET", "/v1/models").json()["data"] == [CARD, CARD | {"id": "gpt-4o"}]


def test_an_alias_has_the_card_of_its_model(fake, ask):
    fake.service.aliases = [parse_alias("claude-*=org/tiny")]
    assert ask("GET", "/v1/models/claude-opus-4").json() == CARD | {"id": "claude-opus-4"}


def test_a_request_by_an_alias_is_answered_by_its_model(fake, complete):
    fake.service.aliases = [parse_alias("claude-*=org/tiny")]
    assert complete(model="claude-opus-4").json()["model"] == "org/tiny"


def test_names_that_no_pattern_matches_are_not_found(fake, complete):
    fake.service.aliases = [parse_alias("claude-*=org/tiny")]
    assert complete(model="Claude-opus-4").status_code == 404


def test_other_names_are_not_found(ask):
    response = ask("GET", "/v1/models/other")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_models_are_unavailable_while_loading(fake, ask):
    fake.service.model = None
    assert ask("GET", "/v1/models").status_code == 503
    assert ask("GET", "/v1/models/org/tiny").status_code == 503


def test_models_are_listed_while_draining(fake, ask):
    fake.service.is_draining = True
    assert ask("GET", "/v1/models").status_code == 200

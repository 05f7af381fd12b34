"""``/v1/models``."""

CARD = {
    "id": "org/tiny",
    "object": "model",
    "created": 1700000000,
    "owned_by": "greenroom",
    "max_model_len": 64,
}


def test_served_model_is_listed(ask):
    assert ask("GET", "/v1/models").json() == {"object": "list", "data": [CARD]}


def test_name_with_a_slash_is_found(ask):
    assert ask("GET", "/v1/models/org/tiny").json() == CARD
    assert ask("GET", "/v1/models/org%2Ftiny").json() == CARD


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

"""Invalid values are refused in one sentence that names the field; values that ask for nothing are accepted."""

import pytest

NAN, INF = float("nan"), float("inf")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("temperature", value) for value in (-0.1, 2.1, NAN, INF, -INF, True, "1", [], 10**400)],
        *[("top_p", value) for value in (-0.1, 1.1, NAN, "1", False)],
        *[("min_p", value) for value in (-0.1, 1.1, NAN, True)],
        *[("top_k", value) for value in (-2, 1.0, 1.5, True, "5", 10**30)],
        *[("repetition_penalty", value) for value in (0, 1e-9, -0.5, 2.1, NAN, True, "1")],
        *[
            (name, value)
            for name in ("presence_penalty", "frequency_penalty")
            for value in (-2.1, 2.1, NAN, False, "1")
        ],
        *[("logit_bias", value) for value in ([], "5", {"a": 1}, {"-1": 1}, {"1.5": 1}, {"\u0664": 1}, {"": 1})],
        *[("logit_bias", {"5": value}) for value in (100.1, -101, NAN, INF, True, "1", None, [])],
        *[("logit_bias", value) for value in ({str(2**31): 1}, {str(token): 1 for token in range(1025)})],
        *[("min_tokens", value) for value in (-1, 1.5, "1", True, 17)],
        *[("priority", value) for value in (1.5, "1", True, 2**31)],
        *[("timeout", value) for value in (0, -1, "1", True, NAN, INF)],
        *[("n", value) for value in (0, 129, -1, True, 1.0, "1", 10**4000)],
        *[("max_tokens", value) for value in (0, -2, 1.5, "16", True, 10**30)],
        *[("max_completion_tokens", value) for value in (0, -2, "16", 10**30)],
        *[("seed", value) for value in (2**63, -(2**63) - 1, 0.5, "1", True)],
        *[("stop", value) for value in ("", ["a", ""], 5, [5], ["a"] * 17, "\ud800", {})],
        *[("stop_token_ids", value) for value in ("1", 5)],
        *[("stream", value) for value in (1, "true", [])],
        *[("stream_options", value) for value in (True, {"include_usage": True}, {})],
        *[("ignore_eos", value) for value in (1, "true")],
        *[("model", value) for value in (5, [], "\ud800")],
    ],
)
def test_bad_value_is_named(fake, complete, field, value):
    response = complete(**{field: value})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == field
    assert error["message"].startswith(f"'{field}'")
    assert error["message"].endswith(".")
    assert len(error["message"]) < 200
    assert not fake.engine.streams


def test_message_has_limit_and_value(complete):
    message = complete(temperature=3).json()["error"]["message"]
    assert message == "'temperature': input should be less than or equal to 2, got 3."


@pytest.mark.parametrize("token", [-1, True, "1", 1.0, 2**31])
def test_bad_stop_token_is_named(complete, token):
    assert complete(stop_token_ids=[5, token]).json()["error"]["param"] == "stop_token_ids[1]"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("echo", True),
    ],
)
def test_unsupported_parameter_of_chat_is_refused(chat, field, value):
    response = chat(**{field: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field


def test_parameters_that_ask_for_nothing_pass(complete, chat):
    neutral = {
        "echo": False,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "logit_bias": {},
        "min_tokens": 0,
        "response_format": {"type": "text"},
        "return_experts": None,
        "return_adapters": None,
        "user": "ann",
        "priority": 3,
        "stop": [],
    }
    assert complete(**neutral, logprobs=None).status_code == 200
    assert chat(**neutral, logprobs=False, top_logprobs=0, tools=[], tool_choice="none").status_code == 200
    assert chat(tool_choice="auto").status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [*[("logprobs", value) for value in (-1, 21, True, "1", 1.5)], ("max_tokens", 0), ("echo", 1), ("echo", "true")],
)
def test_bad_value_of_completions_is_named(complete, field, value):
    response = complete(**{field: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field


@pytest.mark.parametrize(
    ("body", "field"),
    [
        *[({"logprobs": value}, "logprobs") for value in (1, 0, "true")],
        *[({"logprobs": True, "top_logprobs": value}, "top_logprobs") for value in (-1, 21, True, "1")],
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_bad_value_of_chat_is_named(chat, body, field):
    response = chat(**body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field


def test_more_tokens_at_least_than_at_most_are_refused(complete):
    error = complete(max_tokens=5, min_tokens=6).json()["error"]
    assert error["message"] == "'min_tokens' is 6, but at most 5 tokens are generated: lower it."
    assert error["param"] == "min_tokens"


def test_a_bias_out_of_range_is_quoted(complete):
    error = complete(logit_bias={"5": 1000}).json()["error"]
    assert error["message"] == "'logit_bias' must hold numbers from -100 to 100, but that of '5' is 1000."

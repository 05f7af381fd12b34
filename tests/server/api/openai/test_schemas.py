"""Values that are refused, in one sentence that names the field; values that ask for nothing pass."""

import pytest

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("temperature", value) for value in (-0.1, 2.1, NAN, INF, -INF, True, "1", [], 10**400)],
        *[("top_p", value) for value in (0, 1.1, NAN, "1", False)],
        *[("min_p", value) for value in (-0.1, 1.1, NAN, True)],
        *[("top_k", value) for value in (-2, 1.0, 1.5, True, "5", 10**30)],
        *[("n", value) for value in (0, 17, -1, True, 1.0, "1", 10**4000)],
        *[("max_tokens", value) for value in (0, -1, 1.5, "16", True, 10**30)],
        *[("max_completion_tokens", value) for value in (0, "16", 10**30)],
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


def test_message_says_limit_and_value(complete):
    message = complete(temperature=3).json()["error"]["message"]
    assert message == "'temperature': input should be less than or equal to 2, got 3."


@pytest.mark.parametrize("token", [-1, True, "1", 1.0, 2**31])
def test_bad_stop_token_is_named(complete, token):
    assert complete(stop_token_ids=[5, token]).json()["error"]["param"] == "stop_token_ids[1]"


UNSUPPORTED = [
    ("echo", True),
    ("echo", 0),
    ("presence_penalty", 0.5),
    ("presence_penalty", False),
    ("frequency_penalty", -1),
    ("repetition_penalty", 1.1),
    ("repetition_penalty", 0),
    ("logit_bias", {"5": 1}),
    ("min_tokens", 1),
    ("response_format", {"type": "json_object"}),
    ("return_experts", True),
]


@pytest.mark.parametrize(("field", "value"), [*UNSUPPORTED, ("logprobs", 0), ("logprobs", 5)])
def test_unsupported_parameter_of_completions_is_refused(complete, field, value):
    response = complete(**{field: value})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["message"] == f"'{field}' is not supported by this version of Greenroom: leave it out."
    assert error["param"] == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *UNSUPPORTED,
        ("logprobs", True),
        ("top_logprobs", 2),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function"}),
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
        "return_experts": False,
        "user": "ann",
        "priority": 3,
        "stop": [],
    }
    assert complete(**neutral, logprobs=None).status_code == 200
    assert chat(**neutral, logprobs=False, top_logprobs=0, tools=[], tool_choice="none").status_code == 200
    assert chat(tool_choice="auto").status_code == 200

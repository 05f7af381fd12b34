"""Secrets that are removed from texts, and what stays of them."""

from __future__ import annotations

import pytest

from server.redaction import quote, redact

MARK = "swordfish"  # every secret contains it


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f'HTTP Request: GET http://me:{MARK}@host:1/a "HTTP/1.1 206"', ["GET http://", "@host:1/a", "206"]),
        (f"http://a.example,http://me:{MARK}@b.example/c", ["a.example", "@b.example/c"]),
        (f"https://cdn.example/a?X-Amz-Expires=1&X-Amz-Signature={MARK} is gone", ["cdn.example/a?", "is gone"]),
        (f"https://cdn.example/a?Policy={MARK}&next=http://me:{MARK}@b/", ["cdn.example/a?"]),
        (f'"POST /v1/traces?api_key={MARK}&x=1 HTTP/1.1" 200', ["/v1/traces?api_key=", "&x=1 HTTP/1.1"]),
        (f"/a?token={MARK}&sig={MARK}&b=2", ["/a?token=", "&b=2"]),
        (
            f"return_value=(b'HTTP/1.1', 302, [(b'Location', b'https://h/a?{MARK}'), (b'Age', b'1')])",
            ["302", "h/a?", "Age"],
        ),
        (f"[(b'Set-Cookie', b'a={MARK}; b={MARK}'), (b'Age', b'1')]", ["Set-Cookie", "(b'Age', b'1')"]),
        (f"Authorization: Bearer {MARK} was sent", ["Authorization: ", "was sent"]),
        (f"{{'authorization': 'Basic {MARK}', 'age': '1'}}", ["'age': '1'"]),
        (
            f"'Authorization': 'AWS4-HMAC-SHA256 Credential={MARK}/a, SignedHeaders=b, Signature={MARK}'",
            ["SignedHeaders=b"],
        ),
        (f"X-Amz-Security-Token: {MARK}\nHost: a", ["Host: a"]),
        (f"x-api-key:{MARK}", ["x-api-key:"]),
        (f'{{"error": "no", "token": "{MARK}", "password":"{MARK}"}}', ['"error": "no"']),
        (f"aws_secret_access_key={MARK} AWSAccessKeyId={MARK} access_token={MARK}", ["access_token="]),
        (f"the token hf_{MARK} and Bearer {MARK} are wrong", ["the token hf_", "are wrong"]),
    ],
)
def test_secrets_are_hidden_and_the_rest_stays(text: str, left: list[str]) -> None:
    found = redact(text)
    assert MARK not in found
    assert all(each in found for each in left), found
    assert redact(found) == found


@pytest.mark.parametrize(
    "text",
    [
        "request route=/v1/chat/completions seconds=0.25 prompt_tokens=5 max_tokens=7 request_id=76abb9570b80",
        "cannot read ExpertKey(layer=1, expert=2, variant='base') from https://host/model.safetensors: it ended",
        "the first token: 3 s; see https://host/docs#keys",
        "set --api-key-file, or HF_TOKEN; a token is missing",
    ],
)
def test_plain_lines_stay_as_they_are(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("part", ["://", "a://b@", "x-amz-", "a_", "token=", "cookie "])
def test_the_work_is_linear_in_the_length(part: str) -> None:
    """A quadratic pattern would take minutes, and the time limit of tests ends it."""
    redact(f"key {part * (200_000 // len(part))}")


def test_a_quoted_answer_is_one_short_line_without_secrets() -> None:
    answer = f"no:\r\n\xff https://h/a?sig={MARK} ".encode("latin-1") + b"a" * 5000
    found = quote(answer)
    assert found.startswith("no: \ufffd https://h/a?*** aaa")
    assert len(found) == 200

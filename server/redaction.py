"""Removes secrets from texts that people read: lines of the log, and errors that quote other servers."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"

_USER = re.compile(r"""(?<=://)[^\s/?#"'<>\\]*@""")
_WORD = re.compile(r"""[^\s"'<>\\]+""")
_HEADERS = r"(?:proxy-)?authorization|x-(?:amz|goog|ms)-[a-z-]{1,40}|(?:x-)?(?:api|auth)-(?:key|token)"
_NAMES = (
    r"(?:[a-z]{1,20}[-_])?(?:token|secret|signature|credential|password|passwd)|sig"
    r"|(?:[a-z]{1,20}[-_]?)?(?:access|api|secret|private)[-_]?key(?:[-_]?id)?"
)
_VALUE = r"""(?:(?:bearer|basic|digest|negotiate|token)\s+)?[^\s"'&,;<>)\]}\\]+"""
_SECRETS = (
    re.compile(rf"""(?i)(?<![a-z0-9-])((?:{_HEADERS})["']?\s?[=:,]\s?(?:b?["'])?){_VALUE}"""),
    re.compile(r"""(?i)(?<![a-z0-9-])((?:set-)?cookie["']?\s?[=:,]\s?(?:b?["'])?)[^"'\r\n]+"""),
    re.compile(rf"""(?i)(?<![a-z0-9-])((?:{_NAMES})=){_VALUE}"""),
    re.compile(rf"""(?i)(["'](?:{_NAMES})["']\s?:\s?["'])[^"'\\]+"""),
    re.compile(r"(?i)\b((?:bearer|basic) )[a-z0-9._~+/=-]{8,}"),
    re.compile(r"\b(hf_)[A-Za-z0-9]{6,}"),
)
_HINTS = (  # one of which is in each text that a pattern matches: most lines of the log have none
    *("authorization", "cookie", "x-amz-", "x-goog-", "x-ms-", "key", "auth-token", "token=", 'token"', "token'"),
    *("secret", "signature", "credential", "passw", "sig=", 'sig"', "sig'", "bearer ", "basic ", "hf_"),
)


def redact(text: str) -> str:
    """Return a text without the passwords and the queries of addresses, and without values of what is named a secret.

    The time is linear in the length of the text.
    """
    if "://" in text:
        text = _WORD.sub(_without_query, _USER.sub(f"{HIDDEN}@", text))
    lowered = text.lower()
    if any(hint in lowered for hint in _HINTS):
        for pattern in _SECRETS:
            text = pattern.sub(rf"\1{HIDDEN}", text)
    return text


def redact_all(value: Any) -> Any:
    """Return a value of JSON with its texts redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {name: redact_all(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(each) for each in value]
    return value


def quote(answer: bytes, max_characters: int = 200) -> str:
    """Return the beginning of another server's answer in one line, for an error."""
    return " ".join(redact(answer.decode(errors="replace")).split())[:max_characters]


def _without_query(word: re.Match[str]) -> str:
    """Cut the query off an address, which may hold a signature."""
    before, scheme, after = word[0].partition("://")
    path, mark, _ = after.partition("?")
    return f"{before}{scheme}{path}{mark}{HIDDEN}" if mark else word[0]

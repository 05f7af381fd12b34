"""Grammar of any JSON object, in llguidance's dialect of Lark."""

from __future__ import annotations

MAX_DEPTH = 8  # nested objects and arrays; small models tend to open one after the other
MAX_KEY = 64  # characters
_CHARACTER = r'(\\(["\\\/bfnrt]|u([0-9a-ce-fA-CE-F][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}))|[^"\\\x00-\x1F\x7F])'


def json_object() -> str:
    """Return the grammar. It bounds white space, depth and keys, so that even a small model reaches the end."""
    rules = [
        "start: object_1",
        "COMMA: /, ?/",
        "COLON: /: ?/",
        f'KEY: /"{_CHARACTER}{{0,{MAX_KEY}}}"/',
        f'STRING: /"{_CHARACTER}*"/',
        r"NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/",
        'plain: STRING | NUMBER | "true" | "false" | "null"',
    ]
    for depth in range(1, MAX_DEPTH + 1):
        inner = f" | object_{depth + 1} | array_{depth + 1}" if depth < MAX_DEPTH else ""
        rules += [
            f"value_{depth}: plain{inner}",
            f'object_{depth}: "{{" (KEY COLON value_{depth} (COMMA KEY COLON value_{depth})*)? "}}"',
            f'array_{depth}: "[" (value_{depth} (COMMA value_{depth})*)? "]"',
        ]
    return "\n".join(rules)

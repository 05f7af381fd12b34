"""System messages behind others, for templates that take them and for those that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.model.text.later_system import later_system_as_user
from tests.server.model.text.test_tool_template import tokenizer_of

SHOWN = "[{{ m.role }}]{{ m.content }}"
ANY_ORDER = "{% for m in messages %}" + SHOWN + "{% endfor %}"
# As in Qwen 3.5's template, and as in templates that look at the first message only.
REFUSING = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}" + SHOWN + "{% endfor %}"
)
SILENT = "{% for m in messages %}{% if m.role != 'system' or loop.first %}" + SHOWN + "{% endif %}{% endfor %}"

FIRST, HELLO, LATER, REPLY, MORE = (
    {"role": role, "content": content}
    for role, content in [
        ("system", "Be brief."),
        ("user", "Hello"),
        ("system", "Be kind."),
        ("assistant", "Hi"),
        ("user", "More"),
    ]
)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (ANY_ORDER, "[system]Be brief.[user]Hello[system]Be kind.[assistant]Hi"),
        (REFUSING, "[system]Be brief.[user]Hello\n\nBe kind.[assistant]Hi"),
        (SILENT, "[system]Be brief.[user]Hello\n\nBe kind.[assistant]Hi"),
    ],
)
def test_each_template_shows_a_later_system_message(template: str, text: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, template)
    assert tokenizer.decode(tokenizer.encode_chat([FIRST, HELLO, LATER, REPLY])) == text


@pytest.mark.parametrize(
    ("messages", "converted"),
    [
        ([FIRST, HELLO, REPLY], [FIRST, HELLO, REPLY]),
        ([HELLO, REPLY, LATER, MORE], [HELLO, REPLY, {"role": "user", "content": "Be kind.\n\nMore"}]),
        ([HELLO, REPLY, LATER], [HELLO, REPLY, {"role": "user", "content": "Be kind."}]),
        ([HELLO, MORE], [HELLO, MORE]),
    ],
)
def test_the_text_joins_the_messages_of_the_user(messages: list[Any], converted: list[Any]) -> None:
    assert later_system_as_user(messages) == converted


def test_images_of_the_user_stay() -> None:
    image = {"role": "user", "content": [{"type": "image"}]}
    (message,) = later_system_as_user([image, LATER])
    assert message["content"] == [{"type": "image"}, {"type": "text", "text": "Be kind."}]

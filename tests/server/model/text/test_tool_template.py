"""The tool format of any chat template is detected by rendering it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.engine.interface import RequestRefusedError
from server.engine.text.codec import Codec
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.text.tokenizer import ChatTemplateError, Tokenizer
from server.model.text.tool_template import CallForm
from tests.byte_tokenizer import CHAT_TEMPLATE, save_byte_tokenizer
from tests.chat_formats import FAMILIES, TOOLS

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
SHOWS = "{% if tools %}{{ tools | tojson }}{% endif %}" + PLAIN
ARGUMENTS = '{"city": "Paris", "days": 3}'
CONVERSATION = [
    {"role": "user", "content": "Rain?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}
        ],
    },
    {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "no"},
]


def tokenizer_of(folder: Path, template: Any) -> Tokenizer:
    save_byte_tokenizer(folder, template)
    return Tokenizer(FolderCheckpoint(folder))


def rendered(tokenizer: Tokenizer, messages: Any, **options: Any) -> str:
    return bytes(tokenizer.encode_chat(messages, TOOLS, options)).decode()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_familys_template_shows_tools_calls_and_results(name: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, FAMILIES[name].template)
    assert tokenizer.tool_template.shows_tools
    text = rendered(tokenizer, CONVERSATION)
    assert "Does it." in text
    assert text.index("get_weather", text.index("user: Rain?")) < text.index("Paris") < text.index("tool: no")
    assert "'city'" not in text


def test_arguments_are_text_if_a_template_concatenates_them(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, FAMILIES["deepseek-v3"].template)
    assert tokenizer.tool_template.call_form == CallForm(are_arguments_text=True)
    assert ARGUMENTS in rendered(tokenizer, CONVERSATION)


@pytest.mark.parametrize("printed", ["{{ f.arguments }}", "{{ f.arguments | string }}"])
def test_arguments_are_text_if_a_template_prints_them_as_python(printed: str, tmp_path: Path) -> None:
    calls = "{% for c in m.tool_calls or [] %}{% set f = c.function %}{{ f.name }}" + printed + "{% endfor %}"
    template = SHOWS.replace("{{ m.content }}", "{{ m.content }}" + calls)
    assert ARGUMENTS in rendered(tokenizer_of(tmp_path, template), CONVERSATION)


def test_content_is_left_out_if_a_template_shows_calls_only_then(tmp_path: Path) -> None:
    call = "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    said = "{% if m.content is string %}{{ m.content }}{% else %}" + call + "{% endif %}"
    template = SHOWS.replace("{{ m.content }}", said)
    tokenizer = tokenizer_of(tmp_path, template)
    assert tokenizer.tool_template.call_form == CallForm(is_content_none=True)
    assert "Paris" in rendered(tokenizer, CONVERSATION)


def test_ids_are_short_if_a_template_takes_no_others(tmp_path: Path) -> None:
    """Mistral's template does that; the conversation began with another model."""
    call = "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('id') }}{% endif %}"
    call += "{{ c.id }}{{ c.function | tojson }}{% endfor %}{{ m.tool_call_id }}"
    tokenizer = tokenizer_of(tmp_path, SHOWS.replace("{{ m.content }}", "{{ m.content }}" + call))
    assert tokenizer.tool_template.call_form == CallForm(ids="nine")
    assert rendered(tokenizer, CONVERSATION).count("call00001") == 2
    text = rendered(tokenizer, json.loads(json.dumps(CONVERSATION).replace("call00001", "call_of_another")))
    assert "call_of_another" not in text
    assert text.count(text.rpartition("no")[2].strip()) == 2


def test_ids_hold_the_tools_name_if_a_template_shows_only_the_id(tmp_path: Path) -> None:
    """Kimi's template does that."""
    tokenizer = tokenizer_of(tmp_path, FAMILIES["kimi"].template)
    assert tokenizer.tool_template.call_form == CallForm(ids="named")
    assert "functions.get_weather:0" in rendered(tokenizer, CONVERSATION)


def test_messages_without_calls_do_not_change(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, CHAT_TEMPLATE)
    assert tokenizer.tool_template.adapt(CONVERSATION[:1]) == CONVERSATION[:1]


def test_the_template_for_tools_is_used_if_there_are_several(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, {"default": PLAIN, "tool_use": "with tools" + SHOWS})
    assert tokenizer.tool_template.shows_tools
    assert rendered(tokenizer, CONVERSATION[:1]).startswith("with tools")
    assert bytes(tokenizer.encode_chat(CONVERSATION[:1])).startswith(b"user: Rain?")
    assert "with tools" in tokenizer.template


NO_TOOLS = [PLAIN, "{{ raise_exception('no') }}", "{% if tools %}{{ nothing.at.all }}{% endif %}"]


@pytest.mark.parametrize("template", NO_TOOLS)
def test_a_template_without_tools_refuses_them(template: str, tmp_path: Path) -> None:
    codec = Codec(tokenizer_of(tmp_path, template))
    with pytest.raises(
        RequestRefusedError, match="the model's chat template does not support tools; leave out 'tools'"
    ) as raised:
        codec.encode_chat(CONVERSATION[:1], (), TOOLS)
    assert raised.value.param == "tools"


def test_tools_that_need_a_system_message_are_shown(tmp_path: Path) -> None:
    template = "{% if messages[0].role == 'system' %}{{ tools | tojson }}{% endif %}" + PLAIN
    assert tokenizer_of(tmp_path, template).tool_template.shows_tools


def test_an_error_in_a_template_is_a_refusal(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content + 1 }}{% endfor %}"
    with pytest.raises(ChatTemplateError, match="the model's chat template refuses the messages"):
        tokenizer_of(tmp_path, template).encode_chat(CONVERSATION[:1])


def test_arguments_nested_too_deeply_are_a_refusal(tmp_path: Path) -> None:
    deep = '{"a": ' * 900 + "1" + "}" * 900
    messages = json.loads(json.dumps(CONVERSATION).replace(json.dumps(ARGUMENTS), json.dumps(deep)))
    codec = Codec(tokenizer_of(tmp_path, FAMILIES["hermes"].template))
    with pytest.raises(RequestRefusedError, match="the model's chat template refuses the messages") as raised:
        codec.encode_chat(messages, (), TOOLS)
    assert raised.value.param == "messages"


def test_options_are_variables_of_the_template(tmp_path: Path) -> None:
    template = SHOWS + "{{ 'thinks' if enable_thinking else 'speaks' }}"
    assert rendered(tokenizer_of(tmp_path, template), CONVERSATION[:1], enable_thinking=True).endswith("thinks")


@pytest.mark.parametrize(
    "name",
    ["chat_template", "tools", "messages", "conversations", "tokenize", "add_generation_prompt", "tokenizer", "end"],
)
def test_reserved_options_are_refused(name: str, tmp_path: Path) -> None:
    codec = Codec(tokenizer_of(tmp_path, SHOWS))
    with pytest.raises(RequestRefusedError, match=f"must not hold '{name}'") as raised:
        codec.encode_chat(CONVERSATION[:1], (), (), {name: "{{ messages }}"})
    assert raised.value.param == "chat_template_kwargs"

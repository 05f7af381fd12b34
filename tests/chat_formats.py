"""Chat templates in the forms of model families, and what their models write in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.engine.interface import ChatTraits

BAR = "\N{FULLWIDTH VERTICAL LINE}"
SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "set_light": {
        "type": "object",
        "properties": {"room": {"type": "string", "enum": ["hall", "attic"]}, "on": {"type": "boolean"}},
        "required": ["room", "on"],
        "additionalProperties": False,
    },
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "Does it.", "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
PARIS = ("get_weather", '{"city": "Paris", "days": 3}')
HALL = ("set_light", '{"room": "hall", "on": true}')


@dataclass(frozen=True)
class Family:
    """The output format of one family.

    Args:
        call: what the template makes of a call ``f``, in Jinja; ``before`` and ``behind`` stand around all calls.
        special: its special tokens.
        thinking: what is in the template of reasoning; ``prompt_end`` stands at the end of prompts.
        text: what its model writes, and what of it is content, reasoning and calls.
    """

    call: str
    text: str
    calls: Sequence[tuple[str, str]] = (PARIS, HALL)
    content: str = ""
    reasoning: str = ""
    before: str = ""
    behind: str = ""
    special: Sequence[str] = ()
    thinking: str = ""
    prompt_end: str = ""
    ids: Sequence[str] = field(default=())

    @property
    def template(self) -> str:
        """A chat template that shows tools, calls and results."""
        return (
            "{%- if tools %}TOOLS: {{ tools | tojson }}\n{% endif %}"
            "{%- for message in messages %}{{ message.role }}: {{ message.content or '' }}"
            "{%- for call in message.tool_calls or [] %}{% set f = call.function %}"
            "{% if loop.first %}" + self.before + "{% endif %}"
            + self.call
            + "{% if loop.last %}" + self.behind + "{% endif %}"
            "{% endfor %}\n{% endfor %}"
            "{%- if add_generation_prompt %}assistant: " + self.prompt_end + "{% endif %}"
            "{#" + self.thinking + "#}"
        )  # fmt: skip

    @property
    def traits(self) -> ChatTraits:
        ids = {token: 256 + place for place, token in enumerate(self.special)}
        return ChatTraits(self.template, ids, ids)


JSON_CALL = '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}'
PARIS_JSON = '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}'
HALL_JSON = '{"name": "set_light", "arguments": {"room": "hall", "on": true}}'
THINK = "<think></think>"
DEEPSEEK = [f"<{BAR}tool▁{name}{BAR}>" for name in ("calls▁begin", "call▁begin", "sep", "call▁end", "calls▁end")]
CALLS, CALL, SEP, END_CALL, END_CALLS = DEEPSEEK
KIMI = [
    *(f"<|tool_calls_section_{name}|>" for name in ("begin", "end")),
    *(f"<|tool_call_{name}|>" for name in ("begin", "argument_begin", "end")),
]
HARMONY = [f"<|{name}|>" for name in ("start", "channel", "constrain", "message", "end", "return", "call")]

FAMILIES: Mapping[str, Family] = {
    "hermes": Family(
        call="<tool_call>\n" + JSON_CALL + "\n</tool_call>\n",
        thinking=THINK,
        text=(
            "<think>\nTwo calls.\n</think>\n\nI look.\n<tool_call>\n" + PARIS_JSON + "\n</tool_call>\n"
            "<tool_call>\n" + HALL_JSON + "\n</tool_call>"
        ),
        content="I look.",
        reasoning="Two calls.",
    ),
    "qwen-coder": Family(
        call=(
            "<tool_call>\n<function={{ f.name }}>\n{% for key, value in f.arguments.items() %}<parameter={{ key }}>\n"
            "{{ value }}\n</parameter>\n{% endfor %}</function>\n</tool_call>"
        ),
        thinking=THINK,
        prompt_end="<think>\n",
        text=(
            "Two calls.\n</think>\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
            "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=set_light>\n"
            "<parameter=room>\nhall\n</parameter>\n<parameter=on>\ntrue\n</parameter>\n</function>\n</tool_call>"
        ),
        reasoning="Two calls.",
    ),
    "glm": Family(
        call=(
            "\n<tool_call>{{ f.name }}\n{% for key, value in f.arguments.items() %}<arg_key>{{ key }}</arg_key>\n"
            "<arg_value>{{ value }}</arg_value>\n{% endfor %}</tool_call>"
        ),
        thinking=THINK,
        text=(
            "\n<think>Two calls.</think>\nI look.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n"
            "<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
            "<tool_call>set_light<arg_key>room</arg_key><arg_value>hall</arg_value>"
            "<arg_key>on</arg_key><arg_value>true</arg_value></tool_call>"
        ),
        content="I look.",
        reasoning="Two calls.",
    ),
    "minimax": Family(
        before="<minimax:tool_call>\n",
        call=(
            '<invoke name="{{ f.name }}">\n{% for key, value in f.arguments.items() %}<parameter name="{{ key }}">'
            "{{ value }}</parameter>\n{% endfor %}</invoke>\n"
        ),
        behind="</minimax:tool_call>",
        text=(
            '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n'
            '<parameter name="days">3</parameter>\n</invoke>\n<invoke name="set_light">\n'
            '<parameter name="room">hall</parameter>\n<parameter name="on">true</parameter>\n</invoke>\n'
            "</minimax:tool_call>"
        ),
    ),
    "mistral-list": Family(
        before="[TOOL_CALLS] [",
        call=JSON_CALL + "{% if not loop.last %}, {% endif %}",
        behind="]",
        special=["[TOOL_CALLS]"],
        text=f"[TOOL_CALLS] [{PARIS_JSON}, {HALL_JSON}]",
    ),
    "mistral": Family(
        call="[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}",
        special=["[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"],
        thinking="[THINK]",
        text=(
            "[THINK]Two calls.[/THINK]I look."
            f"[TOOL_CALLS]{PARIS[0]}[ARGS]{PARIS[1]}[TOOL_CALLS]{HALL[0]}[ARGS]{HALL[1]}"
        ),
        content="I look.",
        reasoning="Two calls.",
    ),
    "deepseek-v3": Family(
        before=CALLS,
        call=CALL + "function" + SEP + "{{ f.name }}\n```json\n{{ '' + f.arguments }}\n```" + END_CALL + "\n",
        behind=END_CALLS,
        special=DEEPSEEK,
        text=(
            f"{CALLS}{CALL}function{SEP}{PARIS[0]}\n```json\n{PARIS[1]}\n```{END_CALL}\n"
            f"{CALL}function{SEP}{HALL[0]}\n```json\n{HALL[1]}\n```{END_CALL}{END_CALLS}"
        ),
    ),
    "deepseek-v3.1": Family(
        before=CALLS,
        call=CALL + "{{ f.name }}" + SEP + "{{ '' + f.arguments }}" + END_CALL,
        behind=END_CALLS,
        special=DEEPSEEK,
        thinking=THINK,
        prompt_end="</think>",
        text=(
            f"I look.{CALLS}{CALL}{PARIS[0]}{SEP}{PARIS[1]}{END_CALL}{CALL}{HALL[0]}{SEP}{HALL[1]}{END_CALL}{END_CALLS}"
        ),
        content="I look.",
    ),
    "kimi": Family(
        before=KIMI[0],
        call=KIMI[2] + "{{ call.id }}" + KIMI[3] + "{{ f.arguments | tojson }}" + KIMI[4],
        behind=KIMI[1],
        special=KIMI,
        text=(
            f"I look.{KIMI[0]}{KIMI[2]}functions.get_weather:0{KIMI[3]}{PARIS[1]}{KIMI[4]}"
            f"{KIMI[2]}functions.set_light:1{KIMI[3]}{HALL[1]}{KIMI[4]}{KIMI[1]}"
        ),
        content="I look.",
        ids=["functions.get_weather:0", "functions.set_light:1"],
    ),
    "gemma": Family(
        call=(
            "<|tool_call>call:{{ f.name }}{{ '{' }}"
            """{% for key, value in f.arguments.items() %}{{ key }}:<|"|>{{ value }}<|"|>{% endfor %}"""
            "}<tool_call|>"
        ),
        special=["<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>"],
        thinking="<|channel>thought",
        text=(
            "<|channel>thought\nTwo calls.\n<channel|>I look."
            '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3}<tool_call|>'
            '<|tool_call>call:set_light{room:<|"|>hall<|"|>,on:true}<tool_call|>'
        ),
        content="I look.",
        reasoning="Two calls.",
    ),
    "lfm2": Family(
        before="<|tool_call_start|>[",
        call="{{ f.name }}({% for key, value in f.arguments.items() %}{{ key }}={{ value | tojson }}{% endfor %})",
        behind="]<|tool_call_end|>",
        special=["<|tool_call_start|>", "<|tool_call_end|>"],
        text=(
            "<|tool_call_start|>[get_weather(city='Paris', days=3), set_light(room=\"hall\", on=True)]"
            "<|tool_call_end|>I look."
        ),
        content="I look.",
    ),
    "granite": Family(
        before="<|tool_call|>[",
        call=JSON_CALL,
        behind="]",
        special=["<|tool_call|>"],
        text=f"<|tool_call|>[{PARIS_JSON}, {HALL_JSON}]",
    ),
    "tool-calls": Family(
        before="<tool_calls>[",
        call=JSON_CALL,
        behind="]</tool_calls>",
        text=f" <tool_calls>[\n    {PARIS_JSON},\n    {HALL_JSON}\n]</tool_calls>",
    ),
    "longcat": Family(
        call="<longcat_tool_call>\n" + JSON_CALL + "\n</longcat_tool_call>\n",
        text=(
            f"I look.<longcat_tool_call>\n{PARIS_JSON}\n</longcat_tool_call>\n"
            f"<longcat_tool_call>\n{HALL_JSON}\n</longcat_tool_call>"
        ),
        content="I look.",
    ),
    "nemotron": Family(
        before="<TOOLCALL>[",
        call=JSON_CALL,
        behind="]</TOOLCALL>",
        text=f"<TOOLCALL>[{PARIS_JSON}, {HALL_JSON}]</TOOLCALL>",
    ),
    "gigachat": Family(
        call="function call<|role_sep|>\n" + JSON_CALL,
        special=["<|message_sep|>", "<|role_sep|>"],
        text=f"I look.\n\nfunction call<|role_sep|>\n{PARIS_JSON}",
        calls=(PARIS,),
        content="I look.",
    ),
    "pythonic": Family(
        call="[{{ f.name }}({% for key, value in f.arguments.items() %}{{ key }}={{ value | tojson }}{% endfor %})]",
        thinking="[func_name1(params_name1=params_value1...)]",
        text='[get_weather(city="Paris", days=3), set_light(room="hall", on=True)]',
    ),
    "llama": Family(
        call='{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}',
        thinking='{"name": function name, "parameters": dictionary of argument name and its value}',
        text=f"{PARIS_JSON.replace('arguments', 'parameters')}; {HALL_JSON.replace('arguments', 'parameters')}",
    ),
    "harmony": Family(
        call=(
            "<|channel|>commentary to=functions.{{ f.name }} <|constrain|>json<|message|>"
            "{{ f.arguments | tojson }}<|call|>"
        ),
        special=HARMONY,
        thinking="<|channel|>analysis<|message|>",
        text=(
            "<|channel|>analysis<|message|>One call.<|end|><|start|>assistant<|channel|>commentary<|message|>I look."
            "<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
            f"{PARIS[1]}<|call|>"
        ),
        calls=(PARIS,),
        content="I look.",
        reasoning="One call.",
    ),
    "unknown": Family(
        call=" calls {{ f.name }} with {{ f.arguments | tojson }}",
        text=f"[{PARIS_JSON}, {HALL_JSON}]",
    ),
}

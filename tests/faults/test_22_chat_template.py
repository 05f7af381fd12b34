"""A chat template that accesses Python's internals, loops for ever, or writes without end."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from server.engine.text.codec import Codec
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.text import chat_template as template_module
from server.model.text.chat_template import TemplateRenderer, apply_chat_template, shared_renderer
from server.model.text.tokenizer import Tokenizer
from tests.byte_tokenizer import save_byte_tokenizer
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import serving_rig
from tests.server.live.requests import ask, complete, error_of, post, status_of

MESSAGES = [{"role": "user", "content": "Hello <b>& 'you'</b>"}]
BEGINNING = "the model's chat template refuses the messages: "


def refusal(template: str, tmp_path: Path) -> str:
    """Return the error message that a client gets from a server with this template."""
    save_byte_tokenizer(tmp_path, template)
    with serving_rig(Rig(), Codec(Tokenizer(FolderCheckpoint(tmp_path)))) as server:
        answer = ask(server.port, post("/v1/chat/completions", messages=MESSAGES, max_tokens=1))
        assert status_of(answer) == 400
        assert status_of(ask(server.port, complete(b"next", max_tokens=1))) == 200
    error = error_of(answer)
    assert (error["param"], error["message"][: len(BEGINNING)]) == ("messages", BEGINNING)
    return str(error["message"]).removeprefix(BEGINNING)


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose templates have a quarter of a second, once the rendering process is up."""
    shared_renderer().render(conversations=[MESSAGES], chat_template="up")
    monkeypatch.setattr(template_module, "RENDER_SECONDS", 0.25)


@pytest.mark.slow
@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = a ~ b %}{% endfor %}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set x = messages | length + 8 %}{{ x ** (x ** x) }}",
        "{{ '%s' | format((1, 2) * 1000) | length ** 99999999 }}",
    ],
    ids=["loops", "texts", "constant power", "power", "one long call"],
)
def test_a_template_that_loops_for_ever_is_stopped(brisk: None, template: str, tmp_path: Path) -> None:
    """Holds even if one call of the interpreter takes all the time, or compiling the template does."""
    assert refusal(template, tmp_path) == "rendering took longer than 0.25 seconds"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 'a' * 100000000 }}", "it writes 100000000 characters, more than the limit of 16777216"),
        ("{% for i in range(99999) %}{{ 'a' * 1024 }}{% endfor %}", "it writes 102398976 characters"),
        ("{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "more memory"),
        ("{{ 'a' | center(10000000000) }}", "more memory"),
        ("{{ [0] * 9999999999 }}", "more memory"),
        ("{% for i in range(1000000000) %}{% endfor %}", "Range too big"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "the template recurses without end"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ ('' | attr('__class__')).__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "unsafe"),
        ("{{ namespace.__init__.__globals__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader for this environment specified"),
        ("{{ raise_exception('Roles must\\n alternate.') }}", "Roles must alternate."),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_a_template_that_fails_is_refused_with_the_reason(template: str, reason: str, tmp_path: Path) -> None:
    assert reason in refusal(template, tmp_path)


@pytest.mark.slow
def test_after_a_template_that_was_stopped_others_are_rendered(brisk: None, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = shared_renderer()
    with pytest.raises(Exception, match="rendering took longer"):
        renderer.render(conversations=[MESSAGES], chat_template="{{ 9 ** (9 ** 9) }}")
    monkeypatch.setattr(template_module, "RENDER_SECONDS", 30)
    assert renderer.render(conversations=[MESSAGES], chat_template="{{ messages[0].role }}") == "user"


@pytest.mark.slow
def test_a_process_that_dies_is_noticed_and_begun_anew() -> None:
    renderer = TemplateRenderer()
    assert renderer.render(conversations=[MESSAGES], chat_template="one") == "one"
    dead = renderer._process
    assert dead is not None
    dead.kill()
    dead.wait()
    assert renderer.render(conversations=[MESSAGES], chat_template="two") == "two"
    assert [pipe.closed for pipe in (dead.stdin, dead.stdout) if pipe is not None] == [True, True]


@pytest.mark.slow
def test_the_process_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREENROOM_API_KEY", "secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    renderer = TemplateRenderer()
    renderer.start()
    assert renderer._process is not None
    environment = Path(f"/proc/{renderer._process.pid}/environ")
    if environment.exists():
        assert b"secret" not in environment.read_bytes()
    assert renderer.render(conversations=[MESSAGES], chat_template="up") == "up"


CHATML = (
    "{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n' }}{%- for tool in tools %}{{- tool | tojson }}\n{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endif %}{%- set ns = namespace(last=-1) %}"
    "{%- for message in messages[::-1] %}{%- if message.role == 'user' and ns.last < 0 %}"
    "{%- set ns.last = messages | length - 1 - loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}"
    "{%- for call in message.tool_calls or [] %}{{- '<tool_call>' }}{{ call.function | tojson(indent=2) }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['content'] is string %}{% set text = message['content'] %}{% else %}"
    "{% set text = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join %}"
    "{% endif %}{{ '<|' ~ message['role'] | upper ~ '|>' ~ text | trim ~ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|ASSISTANT|>' }}{% endif %}"
)
MACROS = (
    "{%- macro part(text, depth=0) -%}{{ '  ' * depth }}{{ text }}\n{%- endmacro -%}"
    "{%- for message in messages -%}{%- if loop.first -%}{{ part('first') }}{%- endif -%}"
    "{{ part(message.content if message.content is string else (message.content or 'none') | tojson, 1) }}"
    "{%- if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}{% endif %}"
    "{%- if loop.index > 3 %}{% break %}{% endif %}{%- endfor -%}{{ strftime_now('%Y') }} {{ today | default('none') }}"
    "{{ dict(a=1).items() | list }}{{ messages | map(attribute='role') | unique | list }}"
)
CONVERSATIONS = [
    MESSAGES,
    [{"role": "system", "content": "Be  brief. "}, *MESSAGES, {"role": "assistant", "content": "ü 漢 😀 \u2028 \x00"}],
    [{"role": "user", "content": [{"type": "text", "text": " two "}, {"type": "text", "text": "parts"}]}],
    [
        *MESSAGES,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": [1, 2.5, None]}}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "42", "name": None},
    ],
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


@pytest.mark.parametrize("template", [CHATML, LLAMA, MACROS], ids=["chatml", "llama", "macros"])
@pytest.mark.parametrize("options", [{}, {"tools": TOOLS}, {"enable_thinking": False, "today": "now"}], ids=str)
def test_templates_are_rendered_as_transformers_renders_them(
    template: str, options: dict[str, object], tmp_path: Path
) -> None:
    save_byte_tokenizer(tmp_path, template, special=("<s>", "</s>"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path, bos_token="<s>", eos_token="</s>")
    for messages in CONVERSATIONS:
        if template is CHATML and not isinstance(messages[0]["content"], str):
            continue  # which it can't show
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
        assert apply_chat_template(tokenizer, messages, **options) == expected


def test_of_several_templates_the_one_for_tools_is_taken(tmp_path: Path) -> None:
    save_byte_tokenizer(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    tokenizer.chat_template = {"default": "plain", "tool_use": "{{ tools | length }} tools"}
    assert apply_chat_template(tokenizer, MESSAGES) == "plain"
    assert apply_chat_template(tokenizer, MESSAGES, tools=TOOLS) == "1 tools"


def test_a_long_conversation_goes_through(tmp_path: Path) -> None:
    """The texts are longer than the buffer of a pipe, in both directions."""
    text = apply_chat_template(
        PreTrainedTokenizerFast.from_pretrained(saved(tmp_path)), [{"role": "user", "content": "é" * 3_000_000}]
    )
    assert len(text) == 3_000_000 + len("user: \nassistant: ")


def saved(folder: Path) -> Path:
    save_byte_tokenizer(folder)
    return folder

"""Renders chat templates in a separate process, where a malicious template can do no harm."""

from __future__ import annotations

import marshal
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from server.model.text import template_worker
from server.model.text.template_worker import LENGTH, READY, TEXT

RENDER_SECONDS = 5.0
START_SECONDS = 60.0  # start of the process, on a machine that is busy loading weights
ENVIRONMENT = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TMPDIR", "TZ")  # no secrets


@dataclass(frozen=True)
class ChatEnd:
    """The end of a rendered conversation.

    Args:
        add_generation_prompt: with the beginning of the assistant's turn.
        continue_final_message: with the text of the last message, so that the model continues it.

    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False


GENERATION_PROMPT = ChatEnd()


def apply_chat_template(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    end: ChatEnd = GENERATION_PROMPT,
    **options: Any,
) -> str:
    """Render a conversation, like ``tokenizer.apply_chat_template``; may block.

    Args:
        chat_template: the template to use instead of the tokenizer's own.
        end: how the text ends.
        options: further variables of the template.

    Raises:
        TemplateError: the template refuses the messages, fails, or takes too long.
    """
    tools = list(tools) if tools else None
    if renders_itself(tokenizer):
        text: str = tokenizer.apply_chat_template(list(messages), tools=tools, tokenize=False, **asdict(end), **options)
        return text
    return shared_renderer().render(
        conversations=[[{name: value for name, value in each.items() if value is not None} for each in messages]],
        tools=tools,
        chat_template=tokenizer.get_chat_template(chat_template, tools),
        **asdict(end),
        **(tokenizer.special_tokens_map | options),
    )


def renders_itself(tokenizer: Any) -> bool:
    """Return True for tokenizers of mistral-common, which have no template."""
    return type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template


def check_template(template: str, options: Mapping[str, Any]) -> None:
    """Render a question with a template, before a model is loaded for it; may block.

    Raises:
        TemplateError: the template is not Jinja, or fails with a content of text and one of parts.
    """
    contents: list[str | list[dict[str, str]]] = ["Hello", [{"type": "text", "text": "Hello"}]]
    for content in contents:
        try:
            shared_renderer().render(
                conversations=[[{"role": "user", "content": content}]],
                tools=None,
                chat_template=template,
                **asdict(GENERATION_PROMPT),
                **dict.fromkeys(PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES, "") | dict(options),
            )
        except jinja2.TemplateError:
            if content is contents[-1]:
                raise
        else:
            return


class TemplateRenderer:
    """A worker process that renders one conversation at a time; killed and restarted if one takes too long."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = lambda: None  # kills the process; called once
        self._is_ready = False
        self._lock = threading.Lock()  # guards the process and its pipes

    def start(self) -> None:
        """Start the worker process before the first conversation needs it."""
        with self._lock:
            self._start()

    def render(self, **request: Any) -> str:
        """Render a conversation; the arguments are those of transformers' ``render_jinja_template``.

        Raises:
            TemplateError: the template refuses the messages, fails, or takes too long.
        """
        data = marshal.dumps(request)
        with self._lock:
            reply = self._exchange(self._start(), LENGTH.pack(len(data)) + data)
        text = reply[1:].decode(errors="surrogatepass")
        if reply[:1] != TEXT:
            raise jinja2.TemplateError(text)
        return text

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = subprocess.Popen(  # noqa: S603  our own file
                [sys.executable, "-P", template_worker.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ} | {"OMP_NUM_THREADS": "1"},
            )
            self._is_ready = False
            self._end = weakref.finalize(self, _end, self._process)
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], data: bytes) -> bytes:
        try:
            if not self._is_ready:
                _Pipes(process, START_SECONDS).read(len(READY))
                self._is_ready = True
            pipes = _Pipes(process, RENDER_SECONDS)
            pipes.write(data)
            return pipes.read(*LENGTH.unpack(pipes.read(LENGTH.size)))
        except TimeoutError:
            self._end()
            raise jinja2.TemplateError(f"rendering took longer than {RENDER_SECONDS:g} seconds") from None
        except (OSError, EOFError):
            self._end()
            raise jinja2.TemplateError("the rendering process died") from None


class _Pipes:
    """The standard input and output of a process, with a deadline for all operations."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float):
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin.fileno(), process.stdout.fileno()
        self._deadline = time.monotonic() + seconds
        os.set_blocking(self._stdin, False)

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._wait(self._stdin, select.POLLOUT)
            rest = rest[os.write(self._stdin, rest) :]

    def read(self, num_bytes: int) -> bytes:
        data = bytearray()
        while len(data) < num_bytes:
            self._wait(self._stdout, select.POLLIN)
            piece = os.read(self._stdout, num_bytes - len(data))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    def _wait(self, pipe: int, event: int) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        if not poll.poll(max(0.0, self._deadline - time.monotonic()) * 1000):
            raise TimeoutError


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


@cache
def shared_renderer() -> TemplateRenderer:
    """Return the renderer that all models of this process share; conversations wait only briefly for each other."""
    return TemplateRenderer()

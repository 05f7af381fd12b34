"""The process in which chat templates are rendered: it takes one conversation after the other from standard input.

A template is a program of whoever made the checkpoint. The sandbox of transformers keeps it from other things than its
own; only a process of its own, which may be killed, keeps it from computing and writing for ever. This file is run by
``template.py`` and imports nothing of ours.
"""

from __future__ import annotations

import marshal
import resource
import signal
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import PathFinder
from io import FileIO
from pathlib import Path
from types import ModuleType
from typing import Any

LENGTH = struct.Struct("<Q")  # before each message, the number of its bytes
READY = b"!"  # comes once, before anything is asked
TEXT, REFUSAL = b"+", b"-"  # the first byte of an answer
MAX_MEMORY_BYTES = 512 << 20  # beyond what this process takes before it renders
MAX_CPU_SECONDS = 30  # of a conversation; the server waits less long
MAX_CHARACTERS = 16 << 20  # of a conversation as text
MAX_MESSAGE_CHARACTERS = 500


def answer(request: dict[str, Any]) -> bytes:
    """The rendered conversation, or why there is none."""
    from transformers.utils.chat_template_utils import render_jinja_template  # noqa: PLC0415  after the limits are set

    text: str
    try:
        (text,), _ = render_jinja_template(**request)
    except MemoryError:
        return REFUSAL + b"it takes more memory than a template may"
    except RecursionError:
        return REFUSAL + b"it calls itself without end"
    except Exception as error:  # noqa: BLE001  whatever a template does, the client hears of it
        message = " ".join(str(error).split()) or type(error).__name__
        return REFUSAL + message[:MAX_MESSAGE_CHARACTERS].encode(errors="replace")
    if len(text) > MAX_CHARACTERS:
        return REFUSAL + f"it writes {len(text)} characters, more than {MAX_CHARACTERS}".encode()
    return TEXT + text.encode(errors="surrogatepass")


def limit_memory() -> None:
    statm = Path("/proc/self/statm")
    if statm.exists():
        taken = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MAX_MEMORY_BYTES,) * 2)


def limit_time() -> None:
    """End this process should it be left alone with a conversation that takes for ever."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + MAX_CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def lay_out_packages() -> None:
    """Let one module of transformers be imported without its packages, whose ``__init__`` would take 17 MiB."""
    # As if it were not installed: templates get no images.
    sys.modules["PIL"] = None  # type: ignore[assignment]
    path: Sequence[str] | None = None
    for name in ("transformers", "transformers.utils"):
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.submodule_search_locations is None:
            return
        path = list(spec.submodule_search_locations)
        sys.modules[name] = package = ModuleType(name)
        package.__spec__, package.__path__ = spec, path


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, whose end closes standard input
    lay_out_packages()
    import transformers.utils.chat_template_utils  # noqa: F401, PLC0415  takes most of a second

    limit_memory()
    requests, answers = sys.stdin.buffer, FileIO(sys.stdout.fileno(), "w", closefd=False)
    with suppress(BrokenPipeError, EOFError):  # the server has ended without waiting for an answer
        answers.write(READY)
        while len(head := requests.read(LENGTH.size)) == LENGTH.size:
            limit_time()
            reply = answer(marshal.loads(requests.read(*LENGTH.unpack(head))))  # noqa: S302  the server's own
            answers.write(LENGTH.pack(len(reply)) + reply)


if __name__ == "__main__":
    main()

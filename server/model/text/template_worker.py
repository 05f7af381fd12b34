"""The worker process that renders chat templates; reads one conversation after the other from standard input.

A template is a program written by the author of the checkpoint. The sandbox of transformers limits the objects that it
can reach, but only a separate process, which can be killed, limits its time and memory. ``chat_template.py`` runs this
file, which imports nothing from Greenroom.
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

LENGTH = struct.Struct("<Q")  # prefix of each message: the number of its bytes
READY = b"!"  # sent once, before the first request
TEXT, REFUSAL = b"+", b"-"  # the first byte of an answer
MAX_MEMORY_BYTES = 512 << 20  # in addition to the memory of this process before it renders
MAX_CPU_SECONDS = 30  # per conversation; the server's own time limit is shorter
MAX_CHARACTERS = 16 << 20  # of a rendered conversation
MAX_MESSAGE_CHARACTERS = 500


def answer(request: dict[str, Any]) -> bytes:
    """Render a conversation; the answer is its text, or the reason for a refusal."""
    from transformers.utils.chat_template_utils import render_jinja_template  # noqa: PLC0415  after the limits are set

    text: str
    try:
        (text,), _ = render_jinja_template(**request)
    except MemoryError:
        return REFUSAL + b"rendering needs more memory than it may use"
    except RecursionError:
        return REFUSAL + b"the template recurses without end"
    except Exception as error:  # noqa: BLE001  the client gets any error of a template
        message = " ".join(str(error).split()) or type(error).__name__
        return REFUSAL + message[:MAX_MESSAGE_CHARACTERS].encode(errors="replace")
    if len(text) > MAX_CHARACTERS:
        return REFUSAL + f"it writes {len(text)} characters, more than the limit of {MAX_CHARACTERS}".encode()
    return TEXT + text.encode(errors="surrogatepass")


def limit_memory() -> None:
    statm = Path("/proc/self/statm")
    if statm.exists():
        taken = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MAX_MEMORY_BYTES,) * 2)


def limit_time() -> None:
    """Let the system end this process if a conversation takes forever and the server is gone."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + MAX_CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def stub_packages() -> None:
    """Allow the import of one module of transformers without its packages, whose ``__init__`` takes 17 MiB."""
    # Pillow appears not to be installed, since templates get no images.
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the server, which closes standard input
    stub_packages()
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

"""The protocol of a peer's runner: JSON objects, one a line, on the standard output that it was started with.

Whatever libraries print goes to standard error instead.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Prompts = list[list[int]]

_answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def say(**fields: Any) -> None:
    """Write one object."""
    _answers.write(json.dumps(fields) + "\n")
    _answers.flush()


def answer(generate: Callable[[Prompts, int, float], dict[str, Any]], **about: Any) -> None:
    """Say that the model is loaded, then answer each line of standard input.

    ``generate(prompts, new_tokens, seconds)`` generates greedily for all prompts at once and may stop after so many
    seconds of decoding. It returns ``first_token_seconds`` (until every prompt has its first token), and ``tokens`` of
    all prompts that came in the ``seconds`` after that.
    """
    say(ready=True, **about)
    for line in sys.stdin:
        work = json.loads(line)
        say(**generate(work["prompts"], work["new_tokens"], work["seconds"]))

"""Protocol of the runner scripts: one JSON object per line on the original standard output.

Output of libraries is redirected to standard error. Their standard input is empty, for ftllm waits for a key after
errors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

Prompts = list[list[int]]

_output = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
_input = os.fdopen(os.dup(0))
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def send(**fields: Any) -> None:
    """Write one JSON object."""
    _output.write(json.dumps(fields) + "\n")
    _output.flush()


def serve(generate: Callable[[Prompts, int, float], dict[str, Any]], **about: Any) -> None:
    """Report that the model is loaded, then reply to each line of standard input.

    ``generate(prompts, new_tokens, seconds)`` generates greedily for all prompts in one batch, and may stop after
    ``seconds`` of decoding. It returns ``first_token_seconds`` (until every prompt has its first token), and the number
    of ``tokens`` of all prompts in the ``seconds`` after that.
    """
    send(ready=True, **about)
    for line in _input:
        work = json.loads(line)
        send(**generate(work["prompts"], work["new_tokens"], work["seconds"]))

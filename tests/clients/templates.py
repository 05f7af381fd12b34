"""A chat template with which the bundled model answers agents, whose prompts are too long for it."""

from __future__ import annotations

import json
from pathlib import Path

MAX_MESSAGES, MAX_CHARACTERS, MAX_TOOLS_CHARACTERS = 3, 300, 1500


def short_template(model: Path) -> str:
    """Return the template of a model, cut to the last messages, the ends of their texts, and few tools."""
    own: str = json.loads((model / "tokenizer_config.json").read_text())["chat_template"]
    cut = (
        f"{{% set messages = messages[-{MAX_MESSAGES}:] %}}"
        f"{{% set tools = tools if tools and (tools | tojson) | length <= {MAX_TOOLS_CHARACTERS} else none %}}"
    )
    content = "(message['content'] or '')"
    assert content in own
    return cut + own.replace(content, f"{content}[-{MAX_CHARACTERS}:]")

"""Anthropic's tools that the client runs, such as ``bash_20250124``: ordinary tools with schemas that Anthropic fixes.

The schemas are those of Anthropic's documentation and, for memory, of the commands in its Python package.
"""

import re
from collections.abc import Mapping
from typing import Any

from server.engine.interface import JsonObject

DATED = re.compile(r"([a-z_]+)_(\d{8})")
UNDO_UNTIL = 20250124  # the last version of the text editor that can undo
STRING = {"type": "string"}
INTEGER = {"type": "integer"}
RANGE = {"type": "array", "items": INTEGER, "minItems": 2, "maxItems": 2}


def client_tool(kind: str) -> tuple[str, JsonObject] | None:
    """Return the description and the input schema of a tool that the client runs; None for other types."""
    found = DATED.fullmatch(kind)
    make = None if found is None else TOOLS.get(found[1])
    return None if make is None or found is None else make(int(found[2]))


def _bash(_version: int) -> tuple[str, JsonObject]:
    properties = {
        "command": STRING | {"description": "The command to run; required unless restart is true."},
        "restart": {"type": "boolean", "description": "True to restart the shell."},
    }
    return "Run a command in a persistent bash shell.", _object(properties)


def _text_editor(version: int) -> tuple[str, JsonObject]:
    can_undo = version <= UNDO_UNTIL
    commands = ["view", "create", "str_replace", "insert", *(["undo_edit"] if can_undo else [])]
    properties: dict[str, Any] = {
        "command": {"type": "string", "enum": commands},
        "path": STRING | {"description": "Path of the file or folder."},
        "view_range": RANGE | {"description": "First and last line to view; -1 is the end of the file."},
        "file_text": STRING | {"description": "Text of the file to create."},
        "old_str": STRING | {"description": "Text to replace; it must occur once."},
        "new_str": STRING | {"description": "Text to replace it with" + ("; or to insert." if can_undo else ".")},
        "insert_line": INTEGER | {"description": "Line after which text is inserted; 0 is the beginning."},
    }
    if not can_undo:
        properties["insert_text"] = STRING | {"description": "Text to insert."}
    return "View, create and edit text files.", _object(properties, "command", "path")


def _memory(_version: int) -> tuple[str, JsonObject]:
    properties: dict[str, Any] = {
        "command": {"type": "string", "enum": ["view", "create", "str_replace", "insert", "delete", "rename"]},
        "path": STRING | {"description": "Path below /memories, for all commands but rename."},
        "view_range": RANGE | {"description": "First and last line to view."},
        "file_text": STRING | {"description": "Text of the file to create."},
        "old_str": STRING | {"description": "Text to replace."},
        "new_str": STRING | {"description": "Text to replace it with."},
        "insert_line": INTEGER | {"description": "Line at which text is inserted."},
        "insert_text": STRING | {"description": "Text to insert."},
        "old_path": STRING | {"description": "Path to rename."},
        "new_path": STRING | {"description": "New path."},
    }
    return "Keep notes in files below /memories, which last beyond this conversation.", _object(properties, "command")


def _object(properties: Mapping[str, Any], *required: str) -> JsonObject:
    return {"type": "object", "properties": dict(properties), "required": [*required]}


TOOLS = {"bash": _bash, "text_editor": _text_editor, "memory": _memory}

"""Write the pages of docs/ that are made from code: ``python -m tests.made_pages``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from server.cli.main import SUBCOMMANDS, build_parser
from server.other_servers import TABLES

DOCS = Path(__file__).resolve().parent.parent / "docs"
COMMANDS, MIGRATING = DOCS / "cli.md", DOCS / "migrating.md"
MARKDOWN, ESCAPED = re.compile(r"[|*<]"), r"\\\g<0>"
HEAD = """# Commands and flags

`python -m tests.made_pages` writes this page from the parser of the command line.

Each flag of `greenroom serve` is also a variable, `GREENROOM_<FLAG>`, and a key of `--config FILE.toml`: `--port 80` is
`GREENROOM_PORT=80` and `port = 80`. The command line counts more than the environment, and that more than the file.
Flags without a value are `true` there. Flags that may be repeated are a list in the file, separated by commas in the
environment. The exit status is 0, 1 after a failure, and 2 after wrong usage. Flags of other servers are explained
where they are refused; [migrating.md](migrating.md) has them all.
"""


def commands_page() -> str:
    """Return the page of all commands and their flags."""
    return "\n".join([HEAD, *(_section(subcommand.name) for subcommand in SUBCOMMANDS)])


def _section(command: str) -> str:
    (commands,) = (
        action for action in build_parser([command])._actions if isinstance(action, argparse._SubParsersAction)
    )
    parser = commands.choices[command]
    words = " ".join(
        str(action.metavar) + "..." * (action.nargs == "+") if action.required else f"[{action.metavar}]"
        for action in parser._actions
        if not action.option_strings
    )
    usage = f"greenroom {command} {words}".strip()
    lines = [f"## greenroom {command}", "", f"`{usage}`: {parser.description}", ""]
    own = [action for group in parser._action_groups[:2] for action in group._group_actions]
    lines += _table("argument", [action for action in own if not isinstance(action, argparse._HelpAction)])
    for group in parser._action_groups[2:]:
        lines += _table(str(group.title), group._group_actions)
    return "\n".join(lines)


def _table(title: str, actions: Sequence[argparse.Action]) -> list[str]:
    return [f"| {title} | meaning |", "| --- | --- |", *map(_row, actions), ""] if actions else []


def _row(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings)
    metavar = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest)
    is_named = bool(not names or action.metavar or action.choices)
    value = "" if action.nargs == 0 else str(metavar if is_named else metavar.upper())
    meaning = (action.help or "") % {"default": action.default}
    return f"| `{f'{names} {value}'.strip()}` | {MARKDOWN.sub(ESCAPED, meaning)} |"


def migrating_page(page: str) -> str:
    """Return the page about other servers with the tables of ``server.other_servers``."""
    for server, rows in TABLES.items():
        lines = [f"| {server} | Greenroom | remark |", "| --- | --- | --- |"]
        lines += [f"| {row.theirs} | {row.ours} | {row.remark} |".replace("|  |", "| |") for row in rows]
        head = re.escape(f"| {server} | Greenroom | remark |")
        page, count = re.subn(
            rf"^{head}\n(?:\|.*\n)*", lambda _, lines=lines: "\n".join(lines) + "\n", page, flags=re.MULTILINE
        )
        if count != 1:
            raise ValueError(f"{MIGRATING.name} has no table that begins with {lines[0]}")
    return page


if __name__ == "__main__":
    COMMANDS.write_text(commands_page(), "utf-8")
    MIGRATING.write_text(migrating_page(MIGRATING.read_text("utf-8")), "utf-8")

"""Flags, variables, commands and routes of other servers, and what stands for each in Greenroom.

The command line and the HTTP API explain them from these tables, and ``docs/migrating.md`` shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from server.other_servers import llama_cpp, lm_studio, ollama, sglang, tgi, vllm
from server.other_servers.row import SAME, Row

HEEDED = frozenset({"OLLAMA_HOST", "OLLAMA_MODELS"})  # variables that clients and the names of models use

TABLES: dict[str, tuple[Row, ...]] = {
    "vLLM": vllm.ROWS,
    "llama.cpp": llama_cpp.ROWS,
    "SGLang": sglang.ROWS,
    "Ollama": ollama.ROWS,
    "LM Studio": lm_studio.ROWS,
    "TGI": tgi.ROWS,
}


def explain(name: str) -> str | None:
    """Say in one sentence what stands for a flag or variable of other servers; None if none of them has it.

    A flag may have underscores, a value after ``=``, and a ``no-`` before its name.
    """
    flag = name.partition("=")[0]
    if flag.startswith("--"):
        flag = flag.replace("_", "-")
    for spelling in (flag, flag.replace("--no-", "--", 1)):
        told = _explain(flag, lambda row, spelling=spelling: spelling in row.names)  # type: ignore[misc]
        if told is not None:
            return told
    return None


def explain_command(name: str) -> str | None:
    """Say in one sentence what stands for a command of other servers; None if none of them has it."""
    return _explain(name, lambda row: name in row.commands)


def explain_routes() -> dict[str, str]:
    """Say for the path of each route that only other servers have what stands for it."""
    paths = {path for rows in TABLES.values() for row in rows if row.ours != SAME for path in row.paths}
    told = {path: _explain(path, lambda row, path=path: path in row.paths) for path in paths}  # type: ignore[misc]
    return {path: text for path, text in told.items() if text is not None}


def _explain(name: str, has: Callable[[Row], bool]) -> str | None:
    rows = {server: row for server, table in TABLES.items() for row in table if row.ours != SAME and has(row)}
    if not rows:
        return None
    *others, last = rows
    servers = f"{', '.join(others)} and {last}" if others else last
    return next(iter(rows.values())).explain(name, servers)


def explain_variables(environment: Iterable[str]) -> list[str]:
    """Say for each variable of other servers that is set what stands for it, since it has no effect."""
    names = sorted(name for name in environment if "_" in name and name not in HEEDED)
    return [told for name in names if name.isupper() and (told := explain(name)) is not None]

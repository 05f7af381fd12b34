"""Findings as lines and as an object."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from .finding import Finding

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
NAME_COLUMNS = 14


def print_finding(console: Console, finding: Finding) -> None:
    """One line, in colours on a terminal."""
    line = Text.assemble(
        (f"{finding.level:<6}", STYLES[finding.level]), (f"{finding.name:<{NAME_COLUMNS}}", "bold"), finding.message
    )
    if finding.advice:
        line.append("; " + ": give ".join([finding.advice, *finding.flags]), STYLES[finding.level])
    console.print(line, soft_wrap=True)


def as_object(findings: Sequence[Finding], command: str) -> dict[str, Any]:
    """Everything, as ``--json`` prints it."""
    return {
        "can_serve": can_serve(findings),
        "command": command,
        "checks": [
            {
                "name": finding.name,
                "level": finding.level,
                "message": finding.message,
                "advice": finding.advice,
                "flags": list(finding.flags),
            }
            for finding in findings
        ],
    }


def can_serve(findings: Sequence[Finding]) -> bool:
    return all(finding.level != "fail" for finding in findings)


def serve_command(model: str | None, given: Sequence[str], findings: Sequence[Finding]) -> str:
    """How to serve with what was given, and what is advised besides.

    Args:
        given: flags as they were written.
    """
    names = {flag.partition("=")[0] for flag in given}
    advised = [flag for finding in findings for flag in finding.flags if flag.split()[0] not in names]
    words = ["greenroom", "serve", *([model] if model else []), *given]
    return " ".join([shlex.join(words), *advised])

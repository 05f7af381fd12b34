"""Prints findings as lines, or as a JSON object."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from server.doctor.finding import Finding

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
NAME_COLUMNS = 14


def print_finding(console: Console, finding: Finding) -> None:
    """Print a finding as one line, in colours on a terminal."""
    line = Text.assemble(
        (f"{finding.level:<6}", STYLES[finding.level]), (f"{finding.name:<{NAME_COLUMNS}}", "bold"), finding.message
    )
    if finding.advice:
        line.append("; " + ": use ".join([finding.advice, *finding.flags]), STYLES[finding.level])
    console.print(line, soft_wrap=True)


def as_object(findings: Sequence[Finding], command: str) -> dict[str, Any]:
    """Return the object that ``--json`` prints."""
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
    """Return the command that serves the model with the given and the advised flags.

    Args:
        given: flags of the doctor's command line.
    """
    names = {flag.partition("=")[0] for flag in given}
    advised = [flag for finding in findings for flag in finding.flags if flag.split()[0] not in names]
    words = ["greenroom", "serve", *([model] if model else []), *given]
    return " ".join([shlex.join(words), *advised])

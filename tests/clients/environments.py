"""Installs a client in an environment of its own, and runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.clients.catalog import Client

PROGRAMS = Path(__file__).parent / "programs"
INSTALL_SECONDS, RUN_SECONDS = 1200, 300
# pip's and npm's words for an index that they can't reach.
UNREACHABLE = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ENETUNREACH|ETIMEDOUT"
)


class UnreachableIndexError(Exception):
    """The index of packages can't be reached from here."""


def install(client: Client, folder: Path) -> None:
    """Install a client into a folder, unless it is there already. Raises UnreachableIndexError."""
    done = folder / "installed"
    if done.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if client.index == "npm":
        options = ("--loglevel=error", "--no-audit", "--no-fund", "--prefix", str(folder))
        _run("npm", "install", *options, *client.packages)
    else:
        _run(sys.executable, "-m", "venv", str(folder))
        _run(str(folder / "bin" / "pip"), "install", "--quiet", *client.packages)
    done.touch()


def versions(client: Client, folder: Path) -> str:
    """Return the installed version of the first package."""
    name = client.packages[0].partition("[")[0]
    if client.index == "pypi":
        program = f"import importlib.metadata as m; print(m.version({name!r}))"
        return f"{name} {_run(str(folder / 'bin' / 'python'), '-c', program).strip()}"
    name = re.sub(r"(?<=.)@.*", "", name)
    listed = _run("npm", "ls", "--prefix", str(folder), "--depth=0", name).splitlines()
    return next(line.split()[-1] for line in listed if f"{name}@" in line)


def run(client: Client, folder: Path, place: Path, values: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a client in a place of its own; both of its outputs are returned together."""
    place.mkdir(parents=True)
    (place / "out").mkdir()
    values = {**values, "out": str(place / "out")}
    for name, text in client.files:
        (place / name).write_text(_filled(text, values))
    program = client.program or client.name
    binaries = folder / ("bin" if client.index == "pypi" else "node_modules/.bin")
    if client.command:
        command = [_filled(word, values) for word in client.command]
    elif client.index == "pypi":
        # Without -P a program would import itself, since it has the name of its package.
        command = [str(binaries / "python"), "-P", str(PROGRAMS / f"{program}.py")]
    else:
        copied = folder / "program.mjs"  # node finds packages from the place of the program
        shutil.copy(PROGRAMS / f"{program}.mjs", copied)
        command = ["node", str(copied)]
    environment = {
        **{name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR", "SSL_CERT_FILE") if name in os.environ},
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "GREENROOM_URL": values["url"],
        "MODEL": values["model"],
        **{name: _filled(text, values) for name, text in client.variables},
    }
    return subprocess.run(
        command,
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )


def _filled(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return text


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    if done.returncode != 0 and (reason := UNREACHABLE.search(done.stdout + done.stderr)):
        raise UnreachableIndexError(f"{' '.join(command)}: {reason[0]}")
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout

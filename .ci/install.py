"""Runs an installation, writes all that it says into a log, and shows how far it is.

    python .ci/install.py LOG COMMAND...

A terminal shows one line, which is rewritten. Elsewhere and in CI each step has a line. If the command fails, the end
of the log follows.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

# Lines of pip, run with --verbose, and of setup.py, with what they tell about.
STEPS = (
    (r"Collecting ([\w.-]+)", "finding packages: {}"),
    (r"Downloading ([\w.]+)-\S+ \((.+)\)", "downloading {} ({})"),
    (r"Installing build dependencies", "preparing the build of the native kernels"),
    (r"compiling \S+: ", "compiling the native kernels"),
    (r"(?:compiled \S+ in \d+ s|\S+ has not changed) \((\d+ of \d+)\)", "compiling the native kernels: {} files"),
    (r"Installing collected packages: (?!setuptools$)", "installing the packages"),
)
# What setup.py warns of: the installation goes on without the kernels, or a part of them.
WARNING = re.compile(r"no native kernels: .*|\S+ does not support the flags of level .*")
PLAIN_SECONDS = 20  # between lines about the same step, where there is no terminal
END_LINES = 25  # of the log, if the command fails


class Progress:
    """Shows the last step that was read.

    Args:
        is_live: rewrite one line, on a terminal.
    """

    def __init__(self, is_live: bool):
        self.is_live = is_live
        self.text = "starting"
        self.begun = time.monotonic()
        self.shown_at = self.begun
        self.is_new = False  # a step of which nothing was shown yet
        self.seen: set[int] = set()
        self.warnings: list[str] = []

    def read(self, line: str) -> None:
        for place, (pattern, text) in enumerate(STEPS):
            if found := re.match(pattern, line.strip()):
                self.text = text.format(*found.groups())
                self.is_new = self.is_new or place not in self.seen
                self.seen.add(place)
        self.warnings += WARNING.findall(line)

    def show(self) -> None:
        now = time.monotonic()
        if not self.is_live and not self.is_new and now - self.shown_at < PLAIN_SECONDS:
            return
        self.shown_at, self.is_new = now, False
        line = f"{self.clock()} {self.text}"
        if self.is_live:
            print(f"\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K", end="", flush=True)
        else:
            print(line, flush=True)

    def end(self) -> None:
        if self.is_live:
            print("\r\x1b[K", end="")
        for warning in dict.fromkeys(self.warnings):
            print(f"warning: {warning}")

    def clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self.begun), 60)
        return f"{minutes}:{seconds:02}"


def run(command: list[str], log: Path, progress: Progress) -> int:
    """Run a command and return its exit status."""
    with log.open("wb") as file, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        output = process.stdout.fileno()  # type: ignore[union-attr]  # a pipe
        rest = b""
        while True:
            if select.select([output], [], [], 1)[0]:
                data = os.read(output, 1 << 16)
                if not data:
                    break
                file.write(data)
                file.flush()
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    progress.read(line.decode(errors="replace"))
            progress.show()
    return process.returncode


def main() -> int:
    log, command = Path(sys.argv[1]), sys.argv[2:]
    print(f"Installing. The first time takes minutes. Log: {log}", flush=True)
    progress = Progress(is_live=sys.stdout.isatty() and not os.environ.get("CI"))
    try:
        status = run(command, log, progress)
    except KeyboardInterrupt:
        status = 130
    progress.end()
    if not status:
        print(f"Installed in {progress.clock()}.")
        return 0
    lines = log.read_text("utf-8", errors="replace").splitlines()
    print(*lines[-END_LINES:], sep="\n")
    print(f"The installation failed (status {status}): {shlex.join(command)}")
    print(f"The lines above are the end of its log, {log}.")
    return 1


if __name__ == "__main__":
    sys.exit(main())

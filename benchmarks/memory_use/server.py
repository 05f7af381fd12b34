"""A server in its own memory control group, and its memory use."""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.comparison.control_group import ControlGroup, ControlGroupError, drop_page_cache
from benchmarks.serving_processes import READY

START_SECONDS = 300.0
END_SECONDS = 60.0
COUNTED_PARTS = ("trunk", "experts", "kv_cache")


class ServerError(Exception):
    """The server did not start."""


@dataclass(frozen=True)
class Usage:
    """Memory use at one moment, by the kernel's counters unless noted otherwise."""

    anonymous_bytes: int  # server and its child processes
    other_bytes: int | None  # anonymous, without trunk, experts and KV cache; None if the server reports no parts
    group_bytes: int | None  # control group, without page cache of files; None without a group
    peak_bytes: int | None  # maximum of the control group so far, with page cache
    parts: Mapping[str, float]  # from the server's metrics
    expert_slots: int  # host tier, from the server's metrics
    expert_resident: int


class GroupedServer:
    """Runs `greenroom serve` in a control group, or without one if there is no limit and no group can be created.

    Args:
        checkout: folder of the Greenroom to run; that of this process by default.

    Raises:
        ControlGroupError: If there is a limit and no group can be created.
        ServerError: If the server ends before it is ready, or takes too long.
    """

    def __init__(
        self, model: Path, limit_bytes: int | None, flags: Sequence[str], log: Path, checkout: Path | None = None
    ):
        if limit_bytes is not None:
            drop_page_cache(model)  # pages that are already in the page cache would not count
        self._log, self._group = log, _make_group(limit_bytes)
        command = [sys.executable, "-m", "server.cli", "serve", str(model), "--port", "0", *flags]
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                self._group.command(command) if self._group else command,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=checkout,
            )
        try:
            self.url = self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def was_killed(self) -> bool:
        """True if the kernel's OOM killer ended the server or one of its child processes."""
        return self._group is not None and self._group.num_kills() > 0

    @property
    def process(self) -> psutil.Process:
        """The server's process, without its children."""
        return psutil.Process(self._process.pid)

    def peak_bytes(self) -> int | None:
        """Return the maximum of the control group, or None if unknown; works after the server has ended."""
        return self._group.peak_bytes() if self._group else None

    def samples(self) -> dict[tuple[str, ...], float]:
        """Return the server's metrics by name, without the prefix, and values of labels."""
        return {
            (sample.name.removeprefix("greenroom_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(httpx.get(f"{self.url}/metrics", timeout=60).text)
            for sample in family.samples
        }

    def usage(self) -> Usage:
        samples = self.samples()
        parts = {labels[0]: value for (name, *labels), value in samples.items() if name == "memory_bytes"}
        anonymous = anonymous_bytes(self._process.pid)
        return Usage(
            anonymous,
            round(anonymous - sum(parts[part] for part in COUNTED_PARTS)) if parts else None,
            self._group.used_bytes() if self._group else None,
            self.peak_bytes(),
            parts,
            round(samples["expert_slots", "host"]),
            round(samples["expert_resident", "host"]),
        )

    def last_log_line(self) -> str:
        """Return the last line of the server's log."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing"

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.communicate(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        if self._group:
            self._group.close()

    def _wait_until_ready(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_SECONDS)
        line = self._process.stdout.readline().decode() if ready else ""
        if line.startswith(READY):
            return line.removeprefix(READY).split()[0]
        cause = "killed by the kernel" if self.was_killed else f"its log {self._log} ends with: {self.last_log_line()}"
        raise ServerError(f"did not start; {cause}")


def anonymous_bytes(pid: int) -> int:
    """Return anonymous and shared memory of a process and its children; shared pages count once."""
    total = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += int(line.split()[1]) << 10
    return total


def _make_group(limit_bytes: int | None) -> ControlGroup | None:
    try:
        return ControlGroup(limit_bytes)
    except ControlGroupError:
        if limit_bytes is not None:
            raise
        return None

"""Engine processes: loaded once, measured alternately, stopped while another one is measured."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import psutil

from benchmarks.comparison.control_group import ControlGroup, ControlGroupError, drop_page_cache
from benchmarks.load_generator import Completion, Timing, burst

TICKS = os.sysconf("SC_CLK_TCK")
LOAD_SECONDS, REPLY_SECONDS = 300.0, 240.0
REPLY_SECONDS_PER_TOKEN = 0.3  # of the prompts: long ones take an engine many minutes beside other processes


@dataclass(frozen=True)
class Workload:
    """Prompts of one length, generated in one batch, and the number of tokens to generate for each."""

    prompts: Sequence[Sequence[int]]
    new_tokens: int
    seconds: float = 30.0  # limit of decoding time for slow engines

    @property
    def reply_seconds(self) -> float:
        """The longest time to wait for the answers."""
        return REPLY_SECONDS + REPLY_SECONDS_PER_TOKEN * sum(map(len, self.prompts))


@dataclass(frozen=True)
class Measurement:
    """Result of one workload."""

    first_token_seconds: float  # until every prompt has its first token
    tokens: int  # total of all prompts, without the first tokens
    seconds: float  # time after the first tokens
    bytes_read: int = 0  # from disk, during the workload
    others_cores: float = 0.0  # cores used by other processes meanwhile

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else float("nan")


@dataclass(frozen=True)
class LaunchSpec:
    """Command, model, limit and environment of an engine."""

    command: Sequence[str]
    model: Path  # file or folder, dropped from the page cache if there is a limit
    limit_bytes: int | None = None
    folder: Path | None = None  # working directory
    environment: Mapping[str, str] = field(default_factory=dict)
    niceness: int = 0


@dataclass(frozen=True)
class Usage:
    """Counters at one moment."""

    bytes_read: int
    own_cpu_seconds: float  # CPU time of the engine and this process
    machine_cpu_seconds: float  # CPU time of all processes, interrupts and steal time


class EngineError(Exception):
    """An engine did not start, failed or timed out."""


class EngineProcess(ABC):
    """A running engine, stopped with SIGSTOP except during ``measure``."""

    def __init__(self, start: LaunchSpec, log: Path):
        self._group: ControlGroup | None = None
        try:
            self._group = ControlGroup(start.limit_bytes)
        except ControlGroupError:
            if start.limit_bytes is not None:
                raise
        if start.limit_bytes is not None:
            drop_page_cache(start.model)
        self._log, self._folder = log, start.folder
        command = self._group.command(start.command) if self._group else list(start.command)
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=start.folder,
                env={**os.environ, **start.environment},
                start_new_session=True,
            )
        try:
            if start.niceness:
                set_niceness(self._process.pid, start.niceness)
            started = time.perf_counter()
            self.about = self._wait_until_ready()
            self.load_seconds = time.perf_counter() - started
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def process(self) -> psutil.Process:
        """The engine's process, without its children."""
        return psutil.Process(self._process.pid)

    def measure(self, work: Workload) -> Measurement:
        """Run a workload.

        Raises:
            EngineError: If the engine fails.
        """
        self._signal(signal.SIGCONT)
        before, started = self._usage(), time.perf_counter()
        fields = self._generate(work)
        after, took = self._usage(), time.perf_counter() - started
        self._signal(signal.SIGSTOP)
        others = (after.machine_cpu_seconds - before.machine_cpu_seconds) - (
            after.own_cpu_seconds - before.own_cpu_seconds
        )
        return Measurement(
            fields["first_token_seconds"],
            int(fields["tokens"]),
            fields["seconds"],
            after.bytes_read - before.bytes_read,
            max(0.0, others / took),
        )

    def peak_bytes(self) -> int:
        """Return the peak resident memory of the engine's processes, including mapped files."""
        peak = 0
        for pid in self._pids():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    peak += int(line.split()[1]) << 10
        return peak

    def group_peak_bytes(self) -> int | None:
        """Return the peak memory of the control group, including page cache."""
        return self._group.peak_bytes() if self._group else None

    def close(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.communicate()
        if self._group:
            self._group.close()

    @abstractmethod
    def _wait_until_ready(self) -> dict[str, Any]: ...

    @abstractmethod
    def _generate(self, work: Workload) -> Mapping[str, float]: ...

    def _read_line(self, seconds: float) -> str:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            raise EngineError(f"no reply in {seconds:.0f} seconds; {self._last_log_line()}")
        line = self._process.stdout.readline().decode()
        if not line:
            raise EngineError(self._end())
        return line

    def _end(self) -> str:
        """Return why the process ended."""
        code = self._process.wait()
        is_killed = self._group is not None and self._group.num_kills() > 0
        return f"{'the kernel killed it' if is_killed else f'the process ended ({code})'}; {self._last_log_line()}"

    def _last_log_line(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"log {self._log.name} ends with {lines[-1][:200] if lines else 'nothing'!r}"

    def _pids(self) -> list[int]:
        return self._group.pids() if self._group else [self._process.pid]

    def _usage(self) -> Usage:
        read, ticks = 0, 0
        for pid in self._pids():
            for line in Path(f"/proc/{pid}/io").read_text().splitlines():
                if line.startswith("read_bytes"):
                    read += int(line.split()[1])
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
        own = ticks / TICKS + sum(os.times()[:2])
        user, nice, system, _, _, *more = map(int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9])
        return Usage(read, own, (user + nice + system + sum(more)) / TICKS)

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return


class Peer(EngineProcess):
    """A script of ``benchmarks/peers``, which replies with JSON lines."""

    def _wait_until_ready(self) -> dict[str, Any]:
        return json.loads(self._read_line(LOAD_SECONDS))

    def _generate(self, work: Workload) -> Mapping[str, float]:
        assert self._process.stdin is not None
        request = {"prompts": work.prompts, "new_tokens": work.new_tokens, "seconds": work.seconds}
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise EngineError(self._end()) from error
        return json.loads(self._read_line(work.reply_seconds))


class Greenroom(EngineProcess):
    """`greenroom serve`, measured over HTTP; tokens are counted by the usage of its streams."""

    def _wait_until_ready(self) -> dict[str, Any]:
        line = self._read_line(LOAD_SECONDS)
        self._url = line.removeprefix("Greenroom ready: ").split()[0]
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"],  # noqa: S607
            cwd=self._folder,
            check=False,
            capture_output=True,
            text=True,
        ).stdout.strip()
        return {"version": f"{version('greenroom')} {commit}".strip()}

    def _generate(self, work: Workload) -> Mapping[str, float]:
        completions = [Completion(prompt, work.new_tokens) for prompt in work.prompts]
        try:
            timings = asyncio.run(asyncio.wait_for(burst(self._url, completions), work.reply_seconds))
        except (OSError, RuntimeError, TimeoutError) as error:
            if self._process.poll() is not None:
                raise EngineError(self._end()) from error
            raise EngineError(f"{type(error).__name__} {error}; {self._last_log_line()}") from error
        return decode_speed(timings)


def set_niceness(pid: int, niceness: int) -> None:
    """Set the niceness of a process and, if the kernel groups sessions for scheduling, of its session."""
    os.setpriority(os.PRIO_PROCESS, pid, niceness)
    autogroup = Path(f"/proc/{pid}/autogroup")
    if autogroup.exists():
        autogroup.write_text(str(niceness))


def decode_speed(timings: Sequence[Timing]) -> dict[str, float]:
    """Return tokens and seconds from when all streams have their first token until the last stream ends.

    Tokens that complete no character arrive with the chunk of the next one, so each chunk counts as the mean number of
    tokens per chunk of its stream.
    """
    first = max(timing.arrivals[0] for timing in timings)
    tokens = sum(
        timing.num_tokens / len(timing.arrivals) * sum(arrival > first for arrival in timing.arrivals)
        for timing in timings
    )
    last = max(timing.arrivals[-1] for timing in timings)
    return {
        "first_token_seconds": first - min(timing.sent for timing in timings),
        "tokens": round(tokens),
        "seconds": last - first,
    }

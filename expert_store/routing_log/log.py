"""Routing logs: the experts of each lease, as lines of JSON.

The first line is a header::

    {"format": "greenroom-trace", "version": 1, "model": NAME, "layers": {LAYER: EXPERTS}, "slot_bytes": {LAYER: BYTES}}

Each line after it is a lease, ``[layer, [expert, ...], phase]``, with phase ``"p"`` for prefill, ``"d"`` for decode and
``"l"`` for a pass over prompts, layer by layer, which is prefill, too.
A file whose name ends with ``.gz`` is compressed.
"""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from expert_store.errors import RoutingLogError
from expert_store.statistics import Phase

log = logging.getLogger(__name__)

FORMAT = "greenroom-trace"
VERSION = 1
COMPRESSION = 6
LEASES_PER_FLUSH = 1024
CHUNK_BYTES = 1 << 16
_LETTERS: dict[Phase, str] = {"prefill": "p", "decode": "d"}
_PASSING = "l"
_PHASES: dict[str, Phase] = {_PASSING: "prefill", **{letter: phase for phase, letter in _LETTERS.items()}}


class LoggedLease(NamedTuple):
    """One lease: the experts of a layer that a step needed together."""

    layer: int
    experts: tuple[int, ...]
    phase: Phase
    is_passing: bool = False  # for a pass over prompts; see ``ExpertStore.lease_passing``


@dataclass(frozen=True)
class RoutingLogHeader:
    """The model whose routing was recorded.

    ``layers`` has the number of experts and ``slot_bytes`` the bytes of one of them, by MoE layer in their order.
    """

    model: str
    layers: Mapping[int, int]
    slot_bytes: Mapping[int, int]


@dataclass(frozen=True)
class RoutingLog:
    """A complete routing log."""

    header: RoutingLogHeader
    leases: list[LoggedLease]


class RoutingLogWriter:
    """Writes a routing log, from one thread or under a lock of the caller's.

    Raises:
        RoutingLogError: the file can't be opened; later, from any method, it can't be written.
    """

    def __init__(self, path: Path, header: RoutingLogHeader):
        self._path = path
        self._unflushed = 0
        try:
            self._file: BufferedIOBase = (
                gzip.GzipFile(path, "wb", COMPRESSION, mtime=0) if path.name.endswith(".gz") else path.open("wb")
            )
        except OSError as error:
            raise RoutingLogError(f"cannot write the routing log {path}: {error.strerror or error}") from error
        first = {
            "format": FORMAT,
            "version": VERSION,
            "model": header.model,
            "layers": {str(layer): count for layer, count in header.layers.items()},
            "slot_bytes": {str(layer): nbytes for layer, nbytes in header.slot_bytes.items()},
        }
        self._write(json.dumps(first) + "\n")
        self._flush()

    def record(self, layer: int, experts: Iterable[int], phase: Phase, *, is_passing: bool = False) -> None:
        """Add one lease."""
        letter = _PASSING if is_passing else _LETTERS[phase]
        self._write(f'[{layer},[{",".join(map(str, experts))}],"{letter}"]\n')
        self._unflushed += 1
        if self._unflushed == LEASES_PER_FLUSH:
            self._flush()

    def close(self) -> None:
        """Write what is still in memory, and close the file; to be called once."""
        try:
            self._file.close()
        except OSError as error:
            raise self._failure(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: str) -> None:
        try:
            self._file.write(line.encode())
        except OSError as error:
            raise self._failure(error) from error

    def _flush(self) -> None:
        """Write what is in memory to the file, so that little is lost when the process is killed."""
        self._unflushed = 0
        try:
            self._file.flush()
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> RoutingLogError:
        return RoutingLogError(f"cannot write the routing log {self._path}: {error.strerror or error}")


def read_routing_log(path: Path) -> RoutingLog:
    """Read a routing log and check all of it.

    Of a file that breaks off, as a killed server leaves it, the complete lines are used, with a warning.

    Raises:
        RoutingLogError: the file can't be read or a line is malformed; the message names file and line.
    """
    lines = _lines(path)
    first = next(lines, None)
    if first is None:
        raise RoutingLogError(f"{path} is empty; a routing log begins with a header about its model")
    header = _header(path, first)
    return RoutingLog(header, [_lease(path, number, line, header) for number, line in enumerate(lines, start=2)])


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the complete lines; a last one that breaks off is left out."""
    number, rest = 0, b""
    try:
        for chunk in _chunks(path):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                number += 1
                yield line
    except EOFError:
        rest = rest or b"?"
    except (OSError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        place = f" after line {number}" if number else ""
        raise RoutingLogError(f"cannot read the routing log {path}{place}: {reason}") from error
    if rest:
        log.warning("%s breaks off after line %d; the lines before are used", path, number)


def _chunks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file, decompressed; raise EOFError where a compressed file breaks off."""
    with path.open("rb") as file:
        if not path.name.endswith(".gz"):
            yield from iter(lambda: file.read(CHUNK_BYTES), b"")
            return
        # The gzip module loses what it has read of a chunk when the file ends within it.
        inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
        for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
            yield inflater.decompress(chunk)
        if not inflater.eof:
            raise EOFError


def _header(path: Path, line: bytes) -> RoutingLogHeader:
    value = _json(path, 1, line)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise RoutingLogError(f"{path} is not a routing log: its first line lacks the format {FORMAT!r}")
    if value.get("version") != VERSION:
        raise RoutingLogError(
            f"{path} is a routing log of version {value.get('version')!r}; this program reads version {VERSION}"
        )
    model = value.get("model")
    if not isinstance(model, str):
        raise RoutingLogError(f"{path} line 1: model {model!r} is not a name")
    layers, slot_bytes = (_by_layer(path, name, value.get(name)) for name in ("layers", "slot_bytes"))
    if not layers or layers.keys() != slot_bytes.keys():
        raise RoutingLogError(f"{path} line 1: 'layers' and 'slot_bytes' must name the same layers, at least one")
    return RoutingLogHeader(model, layers, slot_bytes)


def _by_layer(path: Path, name: str, value: Any) -> dict[int, int]:
    try:
        numbers = {int(layer): number for layer, number in value.items()}
    except (AttributeError, ValueError):
        numbers = {}
    if not numbers or not all(type(number) is int and number > 0 for number in numbers.values()):
        raise RoutingLogError(f"{path} line 1: {name!r} must give a positive integer for each layer")
    return numbers


def _lease(path: Path, number: int, line: bytes, header: RoutingLogHeader) -> LoggedLease:
    match _json(path, number, line):
        case [layer, list(experts), str(letter)] if type(layer) is int and letter in _PHASES:
            count = header.layers.get(layer)
            if count is None:
                raise RoutingLogError(f"{path} line {number}: the model has no MoE layer {layer}")
            wrong = [expert for expert in experts if type(expert) is not int or not 0 <= expert < count]
            if wrong:
                raise RoutingLogError(
                    f"{path} line {number}: layer {layer} has no expert {wrong[0]!r}, only 0 to {count - 1}"
                )
            if len(set(experts)) != len(experts):
                raise RoutingLogError(f"{path} line {number}: an expert is named twice in one lease")
            return LoggedLease(layer, tuple(experts), _PHASES[letter], letter == _PASSING)
    raise RoutingLogError(f'{path} line {number} is not a lease such as [0,[3,7],"d"]')


def _json(path: Path, number: int, line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # undecodable bytes are a ValueError too
        raise RoutingLogError(f"{path} line {number} is not JSON: {error}") from error

"""Recorded routing: which experts each lease asked for, as lines of JSON.

The first line is a header::

    {"format": "greenroom-trace", "version": 1, "model": NAME, "layers": {LAYER: EXPERTS}, "slot_bytes": {LAYER: BYTES}}

Each line after it is a lease, ``[layer, [expert, ...], phase]``, with phase ``"p"`` for prefill and ``"d"`` for decode.
A name that ends with ``.gz`` is compressed.
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

from .errors import TraceError
from .statistics import Phase

log = logging.getLogger(__name__)

FORMAT = "greenroom-trace"
VERSION = 1
COMPRESSION = 6
LEASES_A_FLUSH = 1024
CHUNK_BYTES = 1 << 16
_LETTERS: dict[Phase, str] = {"prefill": "p", "decode": "d"}
_PHASES: dict[str, Phase] = {letter: phase for phase, letter in _LETTERS.items()}


class TracedLease(NamedTuple):
    """One lease: the experts of a layer that a step needed together."""

    layer: int
    experts: tuple[int, ...]
    phase: Phase


@dataclass(frozen=True)
class TraceHeader:
    """The model that was traced.

    ``layers`` gives the number of experts and ``slot_bytes`` the bytes of one of them, by MoE layer in their order.
    """

    model: str
    layers: Mapping[int, int]
    slot_bytes: Mapping[int, int]


@dataclass(frozen=True)
class Trace:
    """A whole recording."""

    header: TraceHeader
    leases: list[TracedLease]


class TraceWriter:
    """Writes a trace; from one thread, or under a lock of the caller's.

    Raises:
        TraceError: the file can't be opened; later, by any call, that it can't be written.
    """

    def __init__(self, path: Path, header: TraceHeader):
        self._path = path
        self._unflushed = 0
        try:
            self._file: BufferedIOBase = (
                gzip.GzipFile(path, "wb", COMPRESSION, mtime=0) if path.name.endswith(".gz") else path.open("wb")
            )
        except OSError as error:
            raise TraceError(f"cannot write the trace {path}: {error.strerror or error}") from error
        first = {
            "format": FORMAT,
            "version": VERSION,
            "model": header.model,
            "layers": {str(layer): count for layer, count in header.layers.items()},
            "slot_bytes": {str(layer): nbytes for layer, nbytes in header.slot_bytes.items()},
        }
        self._write(json.dumps(first) + "\n")
        self._flush()

    def record(self, layer: int, experts: Iterable[int], phase: Phase) -> None:
        """Add one lease."""
        self._write(f'[{layer},[{",".join(map(str, experts))}],"{_LETTERS[phase]}"]\n')
        self._unflushed += 1
        if self._unflushed == LEASES_A_FLUSH:
            self._flush()

    def close(self) -> None:
        """Write what is still in memory; to be called once."""
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
        """Bring all to the file, so that little is lost when the process is killed."""
        self._unflushed = 0
        try:
            self._file.flush()
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> TraceError:
        return TraceError(f"cannot write the trace {self._path}: {error.strerror or error}")


def read_trace(path: Path) -> Trace:
    """Read a recording and check all of it.

    A file that breaks off, as a killed server leaves it, is read as far as it is whole, with a warning.

    Raises:
        TraceError: it can't be read or a line is not what it should be; the message names file and line.
    """
    lines = _lines(path)
    first = next(lines, None)
    if first is None:
        raise TraceError(f"{path} is empty; a trace starts with a line about its model")
    header = _header(path, first)
    return Trace(header, [_lease(path, number, line, header) for number, line in enumerate(lines, start=2)])


def _lines(path: Path) -> Iterator[bytes]:
    """Whole lines; what breaks off is left out."""
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
        place = f" behind line {number}" if number else ""
        raise TraceError(f"cannot read the trace {path}{place}: {reason}") from error
    if rest:
        log.warning("%s breaks off behind line %d; what comes before is used", path, number)


def _chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, decompressed as far as they go; EOFError where a compressed one breaks off."""
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


def _header(path: Path, line: bytes) -> TraceHeader:
    value = _json(path, 1, line)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise TraceError(f"{path} is not a trace: its first line does not say {FORMAT!r}")
    if value.get("version") != VERSION:
        raise TraceError(f"{path} is a trace of version {value.get('version')!r}; this program reads {VERSION}")
    model = value.get("model")
    if not isinstance(model, str):
        raise TraceError(f"{path} line 1: model {model!r} is not a name")
    layers, slot_bytes = (_by_layer(path, name, value.get(name)) for name in ("layers", "slot_bytes"))
    if not layers or layers.keys() != slot_bytes.keys():
        raise TraceError(f"{path} line 1: 'layers' and 'slot_bytes' must name the same layers, at least one")
    return TraceHeader(model, layers, slot_bytes)


def _by_layer(path: Path, name: str, value: Any) -> dict[int, int]:
    try:
        numbers = {int(layer): number for layer, number in value.items()}
    except (AttributeError, ValueError):
        numbers = {}
    if not numbers or not all(type(number) is int and number > 0 for number in numbers.values()):
        raise TraceError(f"{path} line 1: {name!r} must give a positive whole number for each layer")
    return numbers


def _lease(path: Path, number: int, line: bytes, header: TraceHeader) -> TracedLease:
    match _json(path, number, line):
        case [layer, list(experts), str(letter)] if type(layer) is int and letter in _PHASES:
            count = header.layers.get(layer)
            if count is None:
                raise TraceError(f"{path} line {number}: the model has no MoE layer {layer}")
            wrong = [expert for expert in experts if type(expert) is not int or not 0 <= expert < count]
            if wrong:
                raise TraceError(
                    f"{path} line {number}: layer {layer} has no expert {wrong[0]!r}, only 0 to {count - 1}"
                )
            if len(set(experts)) != len(experts):
                raise TraceError(f"{path} line {number}: an expert is named twice in one lease")
            return TracedLease(layer, tuple(experts), _PHASES[letter])
    raise TraceError(f'{path} line {number} is not a lease such as [0,[3,7],"d"]')


def _json(path: Path, number: int, line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # bytes that are no text are a ValueError too
        raise TraceError(f"{path} line {number} is not JSON: {error}") from error

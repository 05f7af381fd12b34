"""SavedState: what was loaded and unloaded while the server ran, in a file for its next start."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from expert_store.packed.sync import sync
from server.engine.interface import AdapterExamples

MAX_BYTES = 64 << 20
VERSION: Literal[1] = 1

Name = Annotated[str, Field(min_length=1, max_length=128)]
Kind = Literal["adapters", "variants"]

log = logging.getLogger(__name__)


class StateError(Exception):
    """The file can't be used; the message says why and what to do, in one sentence."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class SavedRouting(_Strict):
    """The ``description`` and ``examples`` of a request that loaded an adapter."""

    description: str | None = None
    examples: tuple[str, ...] = ()


class SavedWeights(_Strict):
    """An adapter or a variant that was loaded while the server ran.

    Args:
        path: as the request named it, relative to ``--adapters-dir`` or ``--experts-dir``, or absolute within it.
        routing: what the request said of an adapter's prompts; None if it said nothing.
    """

    name: Name
    path: Annotated[str, Field(min_length=1, max_length=4096)]
    routing: SavedRouting | None = None


class SavedKind(_Strict):
    """The adapters, or the variants, of a state.

    Args:
        unloaded: names that flags load, and that were unloaded since.
    """

    loaded: tuple[SavedWeights, ...] = ()
    unloaded: tuple[Name, ...] = ()

    @model_validator(mode="after")
    def check_names(self) -> Self:
        counts = Counter([*(each.name for each in self.loaded), *self.unloaded])
        name, count = next(iter(counts.most_common(1)), ("", 0))
        if count > 1:
            raise ValueError(f"names {name!r} twice")
        return self

    def with_loaded(self, weights: SavedWeights) -> SavedKind:
        """Return the state after a load, in the place of another of its name."""
        others = self.without(weights.name)
        return SavedKind(loaded=(*others.loaded, weights), unloaded=others.unloaded)

    def with_unloaded(self, name: str) -> SavedKind:
        """Return the state after an unload of weights that flags load."""
        others = self.without(name)
        return SavedKind(loaded=others.loaded, unloaded=(*others.unloaded, name))

    def without(self, name: str) -> SavedKind:
        """Return the state that knows nothing of a name."""
        return SavedKind(
            loaded=tuple(each for each in self.loaded if each.name != name),
            unloaded=tuple(each for each in self.unloaded if each != name),
        )


class _File(_Strict):
    version: Literal[1]
    adapters: SavedKind = SavedKind()
    variants: SavedKind = SavedKind()


class SavedState:
    """The state, and its file. Thread-safe.

    Raises:
        StateError: the file is not a state, or can't be written.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()  # guards the state while it is changed and written
        self._file = _read(path)
        try:
            _write(path, self._file)
        except OSError as error:
            raise StateError(f"{path} can't be written: {error.strerror}") from error

    @property
    def adapters(self) -> SavedKind:
        return self._file.adapters

    @property
    def variants(self) -> SavedKind:
        return self._file.variants

    def change(self, kind: Kind, change: Callable[[SavedKind], SavedKind]) -> None:
        """Change the state of adapters or of variants. A file that can't be written is reported in the log."""
        with self._lock:
            self._file = self._file.model_copy(update={kind: change(getattr(self._file, kind))})
            try:
                _write(self._path, self._file)
            except OSError as error:
                reason = f"can't be written: {error.strerror}; the next start will not know what has changed since"
                log.warning("--state %s %s", self._path, reason)


class Journal:
    """Notes in a state what is loaded and unloaded of one kind.

    Args:
        is_from_flags: returns whether flags load a name at each start.
    """

    def __init__(self, state: SavedState, kind: Kind, is_from_flags: Callable[[str], bool]):
        self._state, self._kind, self._is_from_flags = state, kind, is_from_flags

    def loaded(self, name: str, path: str, examples: AdapterExamples | None = None) -> None:
        """Note that weights were loaded under a name."""
        saved = None if examples is None else SavedRouting(description=examples.description, examples=examples.examples)
        weights = SavedWeights(name=name, path=str(PurePath(path)), routing=saved)
        self._state.change(self._kind, lambda kind: kind.with_loaded(weights))

    def unloaded(self, name: str) -> None:
        """Note that the weights of a name were unloaded."""
        is_from_flags = self._is_from_flags(name)
        self._state.change(self._kind, lambda kind: (kind.with_unloaded if is_from_flags else kind.without)(name))


def _read(path: Path) -> _File:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return _File(version=VERSION)
    except OSError as error:
        raise StateError(f"{path} can't be read: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise StateError(f"{path} is longer than {MAX_BYTES} bytes, so it is no state of a server; name another file")
    try:
        return _File.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        reason = f"{place}: {first['msg']}" if place else first["msg"]
        raise StateError(f"{path} is no state that this server wrote ({reason}); mend it, or remove it") from error


def _write(path: Path, state: _File) -> None:
    """Write a file that is complete whenever the machine stops, and that others can't read."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(state.model_dump_json(indent=1, exclude_none=True))
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise
    sync(path.parent)

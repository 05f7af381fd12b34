"""ChangedFiles: notices changes of files, as no signal reaches an ingress on another machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class ChangedFiles:
    """Tells whether files have been written since the last time.

    Args:
        paths: files; None for one that is not used.
    """

    def __init__(self, paths: Iterable[str | Path | None]):
        self._paths = [Path(path) for path in paths if path is not None]
        self._seen = self._state()

    def are_changed(self) -> bool:
        """Return True if a file is another one, or has other content, than at the last call."""
        before, self._seen = self._seen, self._state()
        return self._seen != before

    def _state(self) -> list[tuple[int, int, int] | None]:
        return [_state(path) for path in self._paths]


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size

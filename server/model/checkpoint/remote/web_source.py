"""A file on a web server as a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

import numpy as np

from expert_store.errors import SourceChangedError
from expert_store.file_name import FileName
from expert_store.sources.base import Bytes, Piece, SourceIdentity
from expert_store.sources.runs import runs_of
from server.model.checkpoint.remote.addresses import without_secrets
from server.model.checkpoint.remote.web_client import Address, Content, WebClient, changed_error

PART_BYTES = 16 << 20  # larger reads are split, and their parts read at the same time


@dataclass(frozen=True)
class WebSource:
    """A file on a web server; see ``Source``.

    Attributes:
        url: with user and password, if it needs them.
    """

    url: str = field(repr=False)
    client: WebClient = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """The address, without user and password."""
        return without_secrets(self.url)

    @property
    def short_name(self) -> str:
        """The last part of the address."""
        return self.name.rpartition("/")[2]

    @property
    def file_name(self) -> FileName:
        """The name in its folder.

        Raises:
            CheckpointError: it is not the name of a file inside a model.
        """
        return FileName(unquote(self.short_name))

    def open(self, *, is_direct: bool = True) -> OpenWebSource:
        """Look for the file; see ``Source``."""
        del is_direct  # there is no cache to pass
        return OpenWebSource(self.client.address(self.url), self.client)


class OpenWebSource:
    """A file whose size and version are known; see ``OpenSource``.

    Nothing tells when it changes. A read of another version fails, and from then on it counts as changed.

    Args:
        content: what the file is; None to ask its server.
    """

    def __init__(self, address: Address, client: WebClient, content: Content | None = None):
        self._address, self._client = address, client
        self._content = client.look(address) if content is None else content
        self._is_changed = False

    @property
    def identity(self) -> SourceIdentity:
        """Address and version."""
        return SourceIdentity("web", (self._address.name, self._content.version), self._content.nbytes)

    def has_changed(self) -> bool:
        """Return True if a read met another version."""
        return self._is_changed

    def refuse_changed(self) -> None:
        """Raise SourceChangedError if a read met another version."""
        if self._is_changed:
            raise changed_error(self._address)

    def read(self, pieces: Sequence[Piece], scratch: Bytes | None = None) -> None:
        """Fill the targets of some pieces: one request for those that adjoin, all requests at the same time."""
        del scratch
        runs = [(run, self._memory(run)) for run in runs_of(pieces)]
        parts = [
            (run[0].offset + begin, memory[begin : begin + PART_BYTES])
            for run, memory in runs
            for begin in range(0, len(memory), PART_BYTES)
        ]
        if not parts:
            return
        try:
            self._client.read_all(self._address, parts, self._content)
        except SourceChangedError:
            self._is_changed = True
            raise
        for run, memory in runs:
            for piece in run:
                if piece.target is not memory:
                    begin = piece.offset - run[0].offset
                    np.copyto(piece.target, memory[begin : begin + len(piece.target)])

    def close(self) -> None:
        """Do nothing: the client's connections serve other files, too."""

    @staticmethod
    def _memory(run: Sequence[Piece]) -> Bytes:
        """Return the memory that a run is read into: the target of its only piece, or new one."""
        if len(run) == 1:
            return run[0].target
        return np.empty(max(piece.end for piece in run) - run[0].offset, np.uint8)

"""GGUF files on the hub, of which only the ranges that are asked for are fetched: headers, but no weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]  # of HTTPError
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, not exported
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from expert_store import CheckpointError, Source, SourceError, SourceFolder
from expert_store.sources.base import Bytes, Piece, SourceIdentity
from server.model.checkpoint.download import Listing

SECONDS = 30.0  # for an answer to begin, and between parts of it
PARTIAL = 206  # status of an answer with a range


@dataclass(frozen=True)
class HubFile:
    """A file of a repository; see ``Source`` and ``OpenSource``."""

    url: str
    nbytes: int

    @property
    def name(self) -> str:
        return self.url

    @property
    def short_name(self) -> str:
        return self.url.rpartition("/")[2]

    def open(self, *, is_direct: bool = True) -> HubFile:  # noqa: ARG002  there is no cache to pass by
        """Return the file itself, which needs no opening."""
        return self

    @property
    def identity(self) -> SourceIdentity:
        return SourceIdentity("hub", (self.url,), self.nbytes)

    def has_changed(self) -> bool:
        """Return False: the address has a commit."""
        return False

    def refuse_changed(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def read(self, pieces: Sequence[Piece], scratch: Bytes | None = None) -> None:  # noqa: ARG002
        """Fetch some pieces, one after the other.

        Raises:
            SourceError: the hub can't be reached, or does not send a range.
        """
        for piece in pieces:
            content = self._fetch(piece.offset, len(piece.target))
            np.copyto(piece.target, np.frombuffer(content, np.uint8))

    def _fetch(self, offset: int, count: int) -> bytes:
        headers = {**build_hf_headers(), "range": f"bytes={offset}-{offset + count - 1}"}
        try:
            with get_session().stream("GET", self.url, headers=headers, timeout=SECONDS) as response:
                hf_raise_for_status(response)
                if response.status_code != PARTIAL:
                    raise SourceError(self.short_name, "the hub does not send it by ranges; give a downloaded file")
                content: bytes = response.read()
        except (HTTPError, HfHubHTTPError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise SourceError(self.short_name, f"{reason}; try again") from error
        if len(content) != count:
            raise SourceError(self.short_name, f"the hub sent {len(content)} of {count} bytes; try again")
        return content


@dataclass(frozen=True)
class HubFolder:
    """The folder of a model's GGUF files in a repository; see ``SourceFolder``."""

    name: str
    files: Mapping[str, HubFile]

    @property
    def short_name(self) -> str:
        return self.name.rpartition("/")[2]

    def names(self) -> Collection[str]:
        """Return the names of the model's files."""
        return self.files.keys()

    def source(self, name: str, *, is_own: bool = False) -> Source:  # noqa: ARG002
        """Return a file.

        Raises:
            CheckpointError: there is no such file.
        """
        if name not in self.files:
            raise CheckpointError(f"{self.name} has no {name}")
        return self.files[name]

    def folder(self, name: str) -> SourceFolder:
        """Return a folder without files."""
        return HubFolder(f"{self.name}/{name}", {})

    def local_copy(self, _: Collection[str]) -> Path:
        """Refuse: there are no small files."""
        raise CheckpointError(f"{self.name} has GGUF files alone")


def gguf_on_hub(listing: Listing) -> tuple[HubFolder, str]:
    """Return the folder of a model's GGUF files on the hub, and the name of the first one."""
    assert listing.gguf is not None
    files = {
        Path(name).name: HubFile(hf_hub_url(listing.model, name, revision=listing.commit), nbytes)
        for name, nbytes in listing.sizes.items()
    }
    return HubFolder(f"{constants.ENDPOINT}/{listing.model}", files), Path(listing.gguf).name

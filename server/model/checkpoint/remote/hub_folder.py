"""A model's files on the hub as sources, of which only the ranges that are asked for are fetched."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not exported

from expert_store import CheckpointError, FileName, FileSource, Source, SourceFolder
from expert_store.errors import SourceUnreadableError
from expert_store.sources.base import SourceIdentity
from server.model.checkpoint.download import download_small_file, download_small_files
from server.model.checkpoint.hub_listing import WEIGHTS, Listing
from server.model.checkpoint.remote.addresses import without_secrets
from server.model.checkpoint.remote.hub_cache import keep_file
from server.model.checkpoint.remote.web_client import Content, WebClient
from server.model.checkpoint.remote.web_source import OpenWebSource


@dataclass(frozen=True)
class HubFile:
    """A file of a repository at a commit; see ``Source``.

    Its link is asked for at the first read, or at once if the repository lists no checksum of it, and kept.

    Attributes:
        path: in the repository.
    """

    path: FileName
    listing: Listing = field(repr=False, compare=False)
    url: str
    client: WebClient = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        return without_secrets(self.url)

    @property
    def short_name(self) -> str:
        return self.url.rpartition("/")[2]

    def open(self, *, is_direct: bool = True) -> OpenWebSource:
        """Open the file; its server tells size and version if the list of files has no checksum of it."""
        del is_direct  # there is no cache to pass
        checksum, commit = self.listing.checksums.get(self.path), self.listing.commit
        address = self.client.address(self.url, self._headers, commit, has_checksum=checksum is not None)
        content = None if checksum is None else Content(self.listing.sizes[self.path], checksum)
        return OpenWebSource(address, self.client, content)

    def _headers(self) -> Mapping[str, str]:
        if constants.HF_HUB_OFFLINE:
            raise SourceUnreadableError(self.name, "it is not on the disk, and HF_HUB_OFFLINE is set")
        headers: Mapping[str, str] = build_hf_headers()
        return headers

    def keep(self, complete: Path, identity: SourceIdentity) -> None:
        """Move the complete file into the hub's cache, as if it had been downloaded.

        Args:
            identity: what it was when it was opened.

        Raises:
            CheckpointError: it is damaged, or the hub has told nothing by which its cache could name it.
            OSError: the disk is full, or fails.
        """
        _, version = identity.version
        keep_file(self.listing, self.path, complete, str(version))


@dataclass(frozen=True)
class HubFolder:
    """The folder of a model's files in a repository; see ``SourceFolder``.

    Files that are in the hub's cache are read there, and those without weights are downloaded to it.

    Attributes:
        path: of the folder in the repository; empty for its root.
    """

    listing: Listing
    client: WebClient = field(default_factory=WebClient, repr=False, compare=False)
    path: str = ""

    @property
    def name(self) -> str:
        return without_secrets(f"{constants.ENDPOINT}/{self.listing.model}/{self.path}".rstrip("/"))

    @property
    def short_name(self) -> str:
        return self.name.rpartition("/")[2]

    def names(self) -> Collection[FileName]:
        """Return the names of the model's files."""
        return self.listing.files_in(self.path).keys()

    def source(self, name: FileName, *, is_own: bool = False) -> Source:
        """Return a file.

        Raises:
            CheckpointError: there is no such file.
            ModelError: it has no weights, and the hub does not send it.
        """
        del is_own  # a repository has no links
        path = self.listing.files_in(self.path).get(name)
        if path is None:
            raise CheckpointError(f"{self.name} has no {name}")
        cached = self.listing.cached(path)
        if cached is not None:
            return FileSource(cached)
        if not path.endswith(WEIGHTS):  # the hub tells no checksum of its content
            return FileSource(download_small_file(self.listing, path))
        return self.remote_file(path)

    def remote_file(self, path: FileName) -> HubFile:
        """Return a file that is not in the hub's cache.

        Args:
            path: in the repository.
        """
        url = f"{constants.ENDPOINT}/{self.listing.model}/resolve/{quote(self.listing.commit, safe='')}/{quote(path)}"
        return HubFile(path, self.listing, url, self.client)

    def folder(self, name: FileName) -> HubFolder:
        """Return a folder in it."""
        return HubFolder(self.listing, self.client, f"{self.path}/{name}".lstrip("/"))

    def local_copy(self, _: Collection[str], through: SourceFolder | None = None) -> Path:
        """Return the folder in the hub's cache, with config and tokenizer, which are downloaded.

        Raises:
            ModelError: the hub does not send one.
        """
        del through  # the cache in front of it is the hub's own
        return download_small_files(self.listing, self.path)

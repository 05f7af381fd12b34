"""Place of a model that is not on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from expert_store import FileName, SourceFolder
from server.model.checkpoint.hub_listing import Listing
from server.model.checkpoint.local_files import GGUF
from server.model.checkpoint.remote.bucket import BucketClient, BucketFolder
from server.model.checkpoint.remote.hub_folder import HubFolder
from server.model.checkpoint.remote.web_client import WebClient
from server.model.checkpoint.remote.web_folder import WebFolder, folder_of
from server.model.checkpoint.remote.web_source import WebSource


@dataclass(frozen=True)
class RemotePlace:
    """A model's folder elsewhere.

    Attributes:
        file: the name of its first GGUF file; None for safetensors and packs.
    """

    folder: SourceFolder
    file: FileName | None = None

    @property
    def short_name(self) -> str:
        return self.folder.short_name if self.file is None else self.file


def web_place(address: str) -> RemotePlace:
    """Return the place of a model on a web server: a folder, or a GGUF file by its name."""
    url, client = address.rstrip("/"), WebClient()
    source = WebSource(url, client)
    if source.short_name.endswith(GGUF):
        return RemotePlace(folder_of(source), source.file_name)
    return RemotePlace(WebFolder(url, client))


def storage_place(address: str) -> RemotePlace:
    """Return the place of a model in object storage: a folder, or a GGUF file by its name.

    Raises:
        ModelError: the package for it is missing, or the address is none.
    """
    folder, _, name = address.rstrip("/").rpartition("/")
    if name.endswith(GGUF):
        return RemotePlace(BucketFolder(BucketClient(folder)), FileName(name))
    return RemotePlace(BucketFolder(BucketClient(address.rstrip("/"))))


def hub_place(listing: Listing) -> RemotePlace:
    """Return the place of a model on the hub."""
    return RemotePlace(HubFolder(listing), None if listing.gguf is None else listing.gguf.last)

"""A folder on a web server, which need not give a list of its files."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from expert_store import FileName, SourceFolder
from expert_store.errors import SourceGoneError
from expert_store.io.safetensors_index import INDEX_NAME, SUFFIX, shard_names
from expert_store.packed.manifest import MANIFEST_NAME
from server.model.checkpoint.local_files import names_of_splits
from server.model.checkpoint.remote.addresses import without_secrets
from server.model.checkpoint.remote.small_copies import SmallCopies
from server.model.checkpoint.remote.web_client import Address, WebClient
from server.model.checkpoint.remote.web_source import WebSource
from server.model.errors import ModelError

SINGLE_SHARD = FileName(f"model{SUFFIX}")
NAMES: tuple[FileName, ...] = (  # of files that a checkpoint or a pack may have
    *map(
        FileName,
        (
            *("config.json", "generation_config.json", "chat_template.jinja", "chat_template.json"),
            *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
            *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "tiktoken.model"),
            *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
        ),
    ),
    *(MANIFEST_NAME, INDEX_NAME, SINGLE_SHARD),
)
NUM_PROBES = 8  # at the same time


@dataclass(frozen=True)
class WebFolder:
    """A folder on a web server; see ``SourceFolder``.

    Its files are those of ``NAMES`` and ``more_names`` that are there, and the shards that the index names.

    Attributes:
        url: without a slash at the end; with user and password, if it needs them.
        more_names: names that files of it may have.
    """

    url: str = field(repr=False)
    client: WebClient = field(repr=False, compare=False)
    more_names: tuple[FileName, ...] = ()

    @property
    def name(self) -> str:
        """The address, without user and password."""
        return without_secrets(self.url)

    @property
    def short_name(self) -> str:
        """The last part of the address."""
        return self.name.rpartition("/")[2]

    def names(self) -> Collection[FileName]:
        """Return the names of the files that are there."""
        return self._names

    def source(self, name: FileName, *, is_own: bool = False) -> WebSource:
        """Return a file of it."""
        del is_own  # a server's links are its own affair
        return WebSource(self._address(name), self.client)

    def folder(self, name: FileName) -> WebFolder:
        """Return a folder in it."""
        return WebFolder(self._address(name), self.client)

    def local_copy(self, patterns: Collection[str], through: SourceFolder | None = None) -> Path:
        """Download the files of some patterns into a folder that is deleted when the process ends."""
        return self._copies.copy(through or self, patterns)

    @cached_property
    def _names(self) -> list[FileName]:
        first, *others = [*NAMES, *self.more_names]
        answers = [self._is_there(first)]  # alone: a server that can't be reached fails all others as slowly
        with ThreadPoolExecutor(NUM_PROBES) as pool:
            answers += pool.map(self._is_there, others)
        found = [name for name, is_there in zip([first, *others], answers, strict=True) if is_there]
        if INDEX_NAME in found:
            found += [name for name in shard_names(self) if name not in found]
        return found

    @cached_property
    def _copies(self) -> SmallCopies:
        return SmallCopies(self.short_name)

    def _address(self, name: FileName) -> str:
        return f"{self.url}/{quote(name)}"

    def _is_there(self, name: FileName) -> bool:
        try:
            self.client.look(Address(self._address(name)))
        except SourceGoneError:
            return False
        return True


def folder_of(source: WebSource) -> WebFolder:
    """Return the folder of a file."""
    path, _, query = source.url.partition("?")
    if query:
        raise ModelError(f"{source.name} has a query, with which the files beside it can't be found; leave it out")
    return WebFolder(path.rpartition("/")[0], source.client, tuple(names_of_splits(source.file_name)))

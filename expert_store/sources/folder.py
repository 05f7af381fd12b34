"""A folder on a disk as a folder of sources; a path stands for it wherever one is taken."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from expert_store.errors import CheckpointError, source_error
from expert_store.file_name import FileName
from expert_store.sources.base import Source, SourceFolder
from expert_store.sources.file import FileSource

Place = Path | SourceFolder  # a path is that of a folder on a disk


@dataclass(frozen=True)
class LocalFolder:
    """A folder on a disk; see ``SourceFolder``."""

    path: Path

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def short_name(self) -> str:
        """The last part of the path."""
        return self.path.name

    def names(self) -> list[FileName]:
        """Return the names of files and folders in it, in order, without those that no file of a model may have."""
        try:
            return sorted(FileName.valid(path.name for path in self.path.iterdir()))
        except OSError as error:
            raise source_error(self.name, error) from error

    def source(self, name: FileName, *, is_own: bool = False) -> FileSource:
        """Return a file of it."""
        path = self.path / name
        if is_own and not path.resolve().is_relative_to(self.path.resolve()):
            raise CheckpointError(f"{path} is outside of {self.path}")
        return FileSource(path)

    def folder(self, name: FileName) -> LocalFolder:
        """Return a folder in it."""
        return LocalFolder(self.path / name)

    def local_copy(self, _: Collection[str], through: SourceFolder | None = None) -> Path:
        """Return the folder itself."""
        del through
        return self.path


def as_folder(place: Place) -> SourceFolder:
    return LocalFolder(place) if isinstance(place, Path) else place


def as_source(file: Path | Source) -> Source:
    return FileSource(file) if isinstance(file, Path) else file

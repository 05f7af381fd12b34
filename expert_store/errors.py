"""Errors of the store.

ExpertStoreError
    CheckpointError      a file or its header can't be used
        SourceError              bytes of a source, such as a file, can't be had
            SourceGoneError          there is no such source, or not any more
            SourceChangedError       it was written to after it was opened
            ShortReadError           it ends before the bytes that were asked for
            SourceTimeoutError       its storage does not answer
            SourceUnreadableError    any other failure of the storage
        FileNameError            a name could lead out of a model's folder
    BudgetError          the memory given is too little for one step
    ExpertLoadError      one expert could not be read
    ChecksumError        an expert's bytes are not those that were packed
    PackError            a packed model can't be written
    RoutingLogError      a routing log can't be read or written
    StoreClosedError     the store was closed while a thread waited
    StoreFailedError     a thread of the store died, so that what needs it would wait for ever
"""

from __future__ import annotations

import errno

from expert_store.keys import ExpertKey


class ExpertStoreError(Exception):
    """Any failure of the store."""


class CheckpointError(ExpertStoreError):
    """A checkpoint's files, headers or tensors are missing, damaged or contradict each other."""


class FileNameError(CheckpointError, ValueError):
    """A name from outside is not one of a file inside a model. It is a ValueError, too, as pydantic expects."""


class BudgetError(ExpertStoreError):
    """A budget in bytes holds fewer slots than a step needs."""


class ExpertLoadError(ExpertStoreError):
    """One expert could not be read. The next lease tries again, unless the expert is quarantined."""

    def __init__(self, key: ExpertKey, reason: object):
        super().__init__(f"cannot read {key}: {reason}")
        self.key = key


class SourceError(CheckpointError):
    """Bytes of a source can't be had.

    Args:
        source: the source's name.
        reason: a phrase that says why, without the name.
        part: what was to be read from it, if it has a name.
    """

    def __init__(self, source: str, reason: str, part: str | None = None):
        self.source, self.reason, self.part = source, reason, part
        super().__init__(self._message())

    def _message(self) -> str:
        return f"cannot read {self.source if self.part is None else f'{self.part} from {self.source}'}: {self.reason}"

    def naming(self, source: str, part: str | None = None) -> SourceError:
        """Return the same error with another name of the source, and perhaps of the part."""
        return type(self)(source, self.reason, part)


class SourceGoneError(SourceError):
    """There is no such source, or not any more."""


class SourceChangedError(SourceError):
    """A source was written to after it was opened, so that its bytes may be of another model."""

    def _message(self) -> str:
        return f"{self.source} {self.reason}"


class ShortReadError(SourceError):
    """A source ends before the bytes that were asked for."""

    def _message(self) -> str:
        reason = self.reason if self.part is None else f"ends inside {self.part}; it was cut short or replaced"
        return f"{self.source} {reason}"


class SourceTimeoutError(SourceError):
    """The storage of a source does not answer."""


class SourceUnreadableError(SourceError):
    """The storage of a source reports an error."""


_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.ESTALE}


def source_error(source: str, error: OSError) -> SourceError:
    """Return the error of a source for one of the operating system."""
    kind: type[SourceError] = SourceUnreadableError
    if error.errno in _GONE:
        kind = SourceGoneError
    elif error.errno == errno.ETIMEDOUT:
        kind = SourceTimeoutError
    return kind(source, error.strerror or str(error))


class ChecksumError(ExpertStoreError):
    """An expert's bytes are not those that were packed; the expert is quarantined."""


class PackError(ExpertStoreError):
    """A packed model can't be written; an older one in the same folder is unchanged."""


class RoutingLogError(ExpertStoreError):
    """A routing log can't be written or read, or a file is not one."""


class StoreClosedError(ExpertStoreError):
    """The store was closed."""


class StoreFailedError(ExpertStoreError):
    """A thread of the store died; only a restart helps."""

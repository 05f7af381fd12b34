"""Errors of the store.

ExpertStoreError
    CheckpointError      a file or its header can't be used
    BudgetError          the memory given is too little for one step
    ExpertLoadError      one expert could not be read
    ShortReadError       a file ends before the bytes that its header promised
    FileChangedError     a file was written to after it was opened
    ChecksumError        an expert's bytes are not those that were packed
    PackError            a packed model can't be written
    RoutingLogError      a routing log can't be read or written
    StoreClosedError     the store was closed while a thread waited
    StoreFailedError     a thread of the store died, so that what needs it would wait for ever
"""

from __future__ import annotations

from expert_store.keys import ExpertKey


class ExpertStoreError(Exception):
    """Any failure of the store."""


class CheckpointError(ExpertStoreError):
    """A checkpoint's files, headers or tensors are missing, damaged or contradict each other."""


class BudgetError(ExpertStoreError):
    """A budget in bytes holds fewer slots than a step needs."""


class ExpertLoadError(ExpertStoreError):
    """One expert could not be read. The next lease tries again, unless the expert is quarantined."""

    def __init__(self, key: ExpertKey, reason: object):
        super().__init__(f"cannot read {key}: {reason}")
        self.key = key


class ShortReadError(ExpertStoreError):
    """A file ended before the bytes that its header promised."""


class FileChangedError(ExpertStoreError):
    """A file was written to after it was opened, so that its bytes may be of another model."""


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

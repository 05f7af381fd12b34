"""Errors of the training code: ``CorpusError`` and ``RunError``, both ``DemoError``."""


class DemoError(Exception):
    """An error that the caller can fix; the message says how."""


class CorpusError(DemoError):
    """The folder has no usable corpus."""


class RunError(DemoError):
    """The run's folder or settings can't be used."""

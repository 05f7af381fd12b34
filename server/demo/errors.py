"""Errors of the training code: ``CorpusError`` and ``RunError``, both ``DemoError``."""


class DemoError(Exception):
    """Something the caller can put right; the message says what."""


class CorpusError(DemoError):
    """The folder does not hold a usable corpus."""


class RunError(DemoError):
    """The run's folder or settings cannot be used."""

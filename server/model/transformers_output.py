"""Keeps transformers from writing to standard error."""

from __future__ import annotations

from transformers.utils import logging as transformers_logging


def silence_transformers() -> None:
    """Switch off transformers' warnings and progress bars, for this process."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()

"""Chooses the level of the native kernels, and tells why there may be none."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from . import library
from .library import LEVELS, KernelError

OFF = "off"
NOTE = library.PATH.with_name("no_kernels.txt")  # setup.py writes it where it could make no library
NOT_BUILT = "they were not built: run `pip install --editable .`"


@dataclass(frozen=True)
class Availability:
    """The levels of the kernels that were built, and those that this processor can run."""

    runnable: tuple[str, ...]  # levels, the lowest first; the last is the best
    lacking: tuple[str, ...]  # levels that the build has not: another processor's, or unknown to its compiler
    reason: str | None  # why there are no kernels at all


@cache
def availability() -> Availability:
    """Levels of this build on this processor."""
    try:
        loaded = library.load()
    except KernelError as error:
        return Availability((), LEVELS, _note() or (str(error) if library.PATH.exists() else NOT_BUILT))
    answers = {level: loaded.greenroom_level(level.encode()) for level in LEVELS}
    return Availability(
        tuple(level for level, answer in answers.items() if answer == level.encode()),
        tuple(level for level, answer in answers.items() if answer is None),
        None,
    )


def _note() -> str | None:
    if library.PATH.exists():
        return None
    try:
        return NOTE.read_text("utf-8").strip() or None
    except OSError:
        return None


def choose_level(wanted: str) -> str | None:
    """The level to use for a value of ``--kernels``.

    Args:
        wanted: ``auto``, ``off`` or one of ``LEVELS``.

    Returns:
        None if torch is to compute: for ``off``, and for ``auto`` where there are no kernels.

    Raises:
        KernelError: there is no such level, or it can't be run here.
    """
    found = availability()
    if wanted == "auto":
        return found.runnable[-1] if found.runnable else None
    if wanted == OFF:
        return None
    if wanted not in LEVELS:
        raise KernelError(f"there are no kernels named {wanted!r}; choose auto, {', '.join(LEVELS)} or {OFF}")
    if found.reason is not None:
        raise KernelError(f"there are no native kernels ({found.reason}); choose auto or {OFF}")
    if wanted not in found.runnable:
        why = "was not built" if wanted in found.lacking else "is more than this processor can run"
        raise KernelError(f"{wanted} {why}; choose auto, {', '.join(found.runnable)} or {OFF}")
    return wanted


def describe_level(wanted: str, level: str | None) -> str:
    """The log's description of the kernels.

    Args:
        level: what ``choose_level`` answered for `wanted`.
    """
    if level is not None:
        return level
    return OFF if wanted == OFF else f"none, torch computes ({availability().reason})"

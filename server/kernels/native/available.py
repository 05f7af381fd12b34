"""Chooses the level (instruction set) of the native kernels, and gives the reason if there are none."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from server.kernels.native import library
from server.kernels.native.library import LEVELS, UNTIMED, KernelError
from server.settings import ServeSettings, SettingsError

if TYPE_CHECKING:
    import torch

OFF = "off"
NOTE = library.PATH.with_name("no_kernels.txt")  # setup.py writes it if it could not build the library
NOT_BUILT = "they were not built: run `pip install --editable .`"


@dataclass(frozen=True)
class Availability:
    """The levels that this processor can run, and those that were not built."""

    runnable: tuple[str, ...]  # levels, the lowest first
    lacking: tuple[str, ...]  # levels missing from the build: for other processors, or unknown to its compiler
    reason: str | None  # set if there are no kernels at all

    @property
    def best(self) -> str | None:
        """The level of ``auto``."""
        return next((level for level in reversed(self.runnable) if level not in UNTIMED), None)


@cache
def availability() -> Availability:
    """Find the levels of this build that this processor can run."""
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
    """Choose the level for a value of ``--kernels``.

    Args:
        wanted: ``auto``, ``off`` or one of ``LEVELS``.

    Returns:
        None if torch computes instead: for ``off``, and for ``auto`` without kernels.

    Raises:
        KernelError: there is no such level, or this processor can't run it.
    """
    found = availability()
    if wanted == "auto":
        return found.best
    if wanted == OFF:
        return None
    if wanted not in LEVELS:
        raise KernelError(f"{wanted!r} is not a kernel level; choose auto, {', '.join(LEVELS)} or {OFF}")
    if found.reason is not None:
        raise KernelError(f"there are no native kernels ({found.reason}); choose auto or {OFF}")
    if wanted not in found.runnable:
        why = "the build lacks it" if wanted in found.lacking else "this processor does not support it"
        raise KernelError(f"{wanted} can't run, since {why}; choose auto, {', '.join(found.runnable)} or {OFF}")
    return wanted


def kernel_level(settings: ServeSettings, device: torch.device) -> str | None:
    """Return the level of native kernels to compute with; None to compute with torch.

    Raises:
        SettingsError: ``--kernels`` names a level that this machine can't run.
    """
    if device.type != "cpu":
        return None
    try:
        return choose_level(settings.kernels)
    except KernelError as error:
        raise SettingsError(f"--kernels {settings.kernels}: {error}") from error


def describe_level(wanted: str, level: str | None) -> str:
    """Describe the kernels in use, for the log.

    Args:
        level: the result of ``choose_level`` for ``wanted``.
    """
    if level is not None:
        return level
    return OFF if wanted == OFF else f"none, torch computes ({availability().reason})"

"""Applies ``--miss-compute`` to a loaded model."""

from __future__ import annotations

from server.device import find_device, is_gpu
from server.kernels.native.available import availability, choose_level
from server.kernels.native.library import KernelError, Kernels
from server.model.errors import ModelError
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import AnyTrunk
from server.settings import ServeSettings, SettingsError


def check_miss_compute(settings: ServeSettings) -> None:
    """Raise SettingsError if the CPU is to compute missed experts, and can't."""
    if settings.miss_compute == "copy":
        return
    flag = f"--miss-compute {settings.miss_compute}"
    if settings.deterministic:
        raise SettingsError(
            f"{flag}: results would depend on which experts are missing, and --deterministic excludes that; "
            "leave one of both out"
        )
    if not is_gpu(find_device(settings.device)):
        raise SettingsError(f"{flag}: there is no GPU that experts could be missing on; leave it out")
    _level_of(settings)


def place_misses(trunk: AnyTrunk, settings: ServeSettings, num_threads: int) -> None:
    """Let the CPU compute missed experts, always or where that is faster.

    Raises:
        ModelError: the model can't be run so.
    """
    if settings.miss_compute == "copy":
        return
    if not isinstance(trunk, Trunk):
        raise ModelError(
            f"--miss-compute {settings.miss_compute}: the model does not run the sequences of a step together; "
            "leave it out"
        )
    trunk.place_misses(settings.miss_compute, Kernels(num_threads, _level_of(settings)))


def _level_of(settings: ServeSettings) -> str:
    """Return the level of the CPU's kernels."""
    try:
        level = choose_level(settings.kernels)
    except KernelError as error:
        raise SettingsError(f"--kernels {settings.kernels}: {error}") from error
    if level is None:
        reason = availability().reason or "--kernels off"
        raise SettingsError(f"--miss-compute {settings.miss_compute}: the CPU has no kernels to use ({reason})")
    return level

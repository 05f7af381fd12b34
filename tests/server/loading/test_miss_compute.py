"""Refusals of ``--miss-compute`` where no CPU beside a GPU can compute missed experts."""

from __future__ import annotations

import pytest

from server.loading.miss_compute import check_miss_compute
from server.settings import ServeSettings, SettingsError


@pytest.mark.parametrize("mode", ["cpu", "auto"])
def test_without_a_gpu_nothing_can_be_missing_on_it(mode: str) -> None:
    with pytest.raises(SettingsError, match=f"^--miss-compute {mode}: there is no GPU .*; leave it out$"):
        check_miss_compute(ServeSettings(device="cpu", miss_compute=mode))


def test_deterministic_results_can_not_depend_on_what_is_missing() -> None:
    with pytest.raises(SettingsError, match="--deterministic excludes that"):
        check_miss_compute(ServeSettings(device="cpu", miss_compute="auto", deterministic=True))


def test_copying_is_allowed_anywhere() -> None:
    check_miss_compute(ServeSettings(device="cpu", deterministic=True))

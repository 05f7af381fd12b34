"""The choice of a level of the native kernels, and the messages if there is none."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from server.kernels.native import available, library
from server.kernels.native.available import Availability, choose_level, describe_level
from server.kernels.native.library import LEVELS, KernelError
from server.settings import ServeSettings


def have(monkeypatch: pytest.MonkeyPatch, found: Availability) -> None:
    monkeypatch.setattr(available, "availability", lambda: found)


@pytest.fixture
def fresh() -> None:
    """Clears the cached availability before and after."""
    library.load.cache_clear()
    available.availability.cache_clear()
    yield
    library.load.cache_clear()
    available.availability.cache_clear()


def test_the_setting_has_all_levels() -> None:
    assert get_args(ServeSettings.model_fields["kernels"].annotation) == ("auto", *LEVELS, "off")


def test_auto_is_the_highest_level_and_a_lower_one_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, Availability(("portable", "avx2"), ("avx512_bf16",), None))
    assert choose_level("auto") == "avx2"
    assert choose_level("portable") == "portable"
    assert choose_level("off") is None


def test_amx_is_chosen_only_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, Availability(LEVELS, (), None))
    assert (choose_level("auto"), choose_level("amx")) == ("avx512_bf16", "amx")


def test_the_library_chooses_the_level_of_auto() -> None:
    if not available.availability().runnable:
        pytest.skip("no native kernels")
    assert library.best_level() == choose_level("auto")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("avx512", "avx512 can't run, since this processor does not support it; choose auto, portable, avx2 or off"),
        (
            "avx512_bf16",
            "avx512_bf16 can't run, since the build lacks it; choose auto, portable, avx2 or off",
        ),
        ("sse9", "'sse9' is not a kernel level; choose auto, portable, avx2, avx512, avx512_bf16, amx or off"),
    ],
)
def test_an_unavailable_level_is_refused(wanted: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, Availability(("portable", "avx2"), ("avx512_bf16",), None))
    with pytest.raises(KernelError) as refusal:
        choose_level(wanted)
    assert str(refusal.value) == message


def test_without_a_library_torch_computes_unless_a_level_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, Availability((), LEVELS, "pip found no C++ compiler"))
    assert choose_level("auto") is None
    assert describe_level("auto", None) == "none, torch computes (pip found no C++ compiler)"
    with pytest.raises(KernelError, match=r"^there are no native kernels \(pip found no C\+\+ compiler\); choose auto"):
        choose_level("avx2")


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "they were not built"),
        ({"no_kernels.txt": b"pip found no C++ compiler\n"}, "pip found no C++ compiler"),
        ({"kernels.so": b"not a library", "no_kernels.txt": b"old"}, "the native kernels can't be loaded"),
    ],
)
def test_the_reason_is_the_note_of_the_build(
    files: dict[str, bytes], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(library, "PATH", tmp_path / "kernels.so")
    monkeypatch.setattr(available, "NOTE", tmp_path / "no_kernels.txt")
    found = available.availability()
    assert found.runnable == ()
    assert found.reason is not None
    assert found.reason.startswith(reason)

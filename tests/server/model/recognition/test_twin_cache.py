"""The findings on a twin are kept for the next start with the same config and software."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from server.kernels.native.available import availability
from server.kernels.native.library import Kernels
from server.model.blocks.errors import UnsupportedLayerError
from server.model.declarations.declaration import Declaration
from server.model.model_building import build_model
from server.model.recognition import find_program, twin_cache
from server.model.recognition.find_program import find_declaration
from server.model.recognition.twin_cache import TwinCache
from tests.families import make_config, make_unusual_config

LONGEST = 64

pytestmark = pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(1)


def model_of(**changes: object) -> PreTrainedModel:
    config = make_config("qwen3_moe")
    for key, value in changes.items():
        setattr(config, key, value)
    return build_model(config, torch.float32)


def cached_file() -> Path:
    file = TwinCache.of(model_of(), LONGEST).file
    assert file is not None
    return file


def forbid_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> Declaration:
        raise AssertionError(args)

    monkeypatch.setattr(find_program, "recognise_twin", fail)


def test_the_second_start_builds_no_twin(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    first = find_declaration(model_of(), kernels, LONGEST)
    forbid_twins(monkeypatch)
    assert find_declaration(model_of(), kernels, LONGEST) == first


@pytest.mark.parametrize("change", [{"num_experts_per_tok": 3}, {"norm_topk_prob": True}])
def test_another_config_has_a_twin_of_its_own(
    change: dict[str, object], kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_declaration(model_of(), kernels, LONGEST)
    forbid_twins(monkeypatch)
    with pytest.raises(AssertionError):
        find_declaration(model_of(**change), kernels, LONGEST)


def test_another_version_has_a_twin_of_its_own(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    find_declaration(model_of(), kernels, LONGEST)
    forbid_twins(monkeypatch)
    monkeypatch.setattr(twin_cache, "_versions", lambda: ["another"])
    with pytest.raises(AssertionError):
        find_declaration(model_of(), kernels, LONGEST)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[[[", b'{"type": "Layer"}'])
def test_a_damaged_file_is_ignored(content: bytes, kernels: Kernels) -> None:
    first = find_declaration(model_of(), kernels, LONGEST)
    cached_file().write_bytes(content)
    assert find_declaration(model_of(), kernels, LONGEST) == first


@pytest.mark.parametrize("text", ["", '{"reason": 3}', '{"layers": 1}', '{"type": "Declaration", "of_tomorrow": 1}'])
def test_a_file_of_another_version_is_ignored(text: str, kernels: Kernels) -> None:
    first = find_declaration(model_of(), kernels, LONGEST)
    cached_file().write_text(twin_cache._sealed(text))
    assert find_declaration(model_of(), kernels, LONGEST) == first


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_was_cut_is_ignored_and_written_again(share: float, kernels: Kernels) -> None:
    first = find_declaration(model_of(), kernels, LONGEST)
    whole = cached_file().read_bytes()
    cached_file().write_bytes(whole[: int(share * len(whole))])
    assert find_declaration(model_of(), kernels, LONGEST) == first
    assert cached_file().read_bytes() == whole


def test_a_file_with_another_number_is_ignored(kernels: Kernels) -> None:
    first = find_declaration(model_of(), kernels, LONGEST)
    text = cached_file().read_text()
    changed = text.replace('"top_k": 2', '"top_k": 3')
    assert changed != text
    cached_file().write_text(changed)
    assert find_declaration(model_of(), kernels, LONGEST) == first


def test_a_home_that_can_only_be_read_changes_nothing(monkeypatch: pytest.MonkeyPatch, kernels: Kernels) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no-folder-can-be-made-here")  # for root, too
    assert find_declaration(model_of(), kernels, LONGEST) == find_declaration(model_of(), kernels, LONGEST)


def test_a_folder_that_can_not_be_written_changes_nothing(folder: Path, kernels: Kernels) -> None:
    (folder / "greenroom").write_text("a file where a folder should be")
    assert find_declaration(model_of(), kernels, LONGEST) == find_declaration(model_of(), kernels, LONGEST)


def test_the_reason_against_native_kernels_is_kept(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(make_unusual_config(), torch.float32)
    with pytest.raises(UnsupportedLayerError) as first:
        find_declaration(model, kernels, LONGEST)
    forbid_twins(monkeypatch)
    with pytest.raises(UnsupportedLayerError, match=str(first.value)):
        find_declaration(model, kernels, LONGEST)


def test_a_model_that_differs_from_its_family_runs_as_found_and_the_log_says_what_differs(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = find_declaration(model_of(), kernels, LONGEST)
    monkeypatch.setattr(twin_cache, "_versions", lambda: ["another"])
    monkeypatch.setattr(find_program, "declared", lambda config: Declaration(layers=found.layers, embedding_scale=2.0))
    with caplog.at_level(logging.WARNING):
        assert find_declaration(model_of(), kernels, LONGEST) == found
    assert "families/qwen3_moe.py says (embedding_scale: 2.0 was declared, and 1.0 was found)" in caplog.text

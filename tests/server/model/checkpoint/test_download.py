"""The hub is asked about a model before it is downloaded."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import HfApi, ModelInfo

from server.model.checkpoint.download import download
from server.model.checkpoint.hub_listing import list_upload
from server.model.errors import ModelError

CONFIG, WEIGHTS = {"rfilename": "config.json", "size": 1}, {"rfilename": "model.safetensors", "size": 100}


@pytest.fixture
def upload(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The hub's answers about each model."""
    answer: dict[str, Any] = {"id": "a/model", "sha": "0" * 40, "siblings": [CONFIG, WEIGHTS]}
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: ModelInfo(**answer))
    return answer


@pytest.mark.parametrize(
    ("base", "source"),
    [("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-30B-A3B"), (["a/b", "c/d"], "a/b or c/d"), (None, "its model card names it")],
)
def test_an_upload_for_mlx_is_refused_with_its_original(base: Any, source: str, upload: dict[str, Any]) -> None:
    upload |= {"library_name": "mlx", "cardData": {"base_model": base}}
    for attempt in (download, list_upload):
        with pytest.raises(ModelError, match=rf"^a/model is in MLX's format, .* that it was converted from \({source}"):
            attempt("a/model", None)


def test_an_upload_for_mlx_of_a_supported_family_is_listed(upload: dict[str, Any]) -> None:
    upload |= {"library_name": "mlx", "config": {"model_type": "qwen3_moe"}}
    assert list_upload("a/model", None) is not None


def test_weights_in_the_format_of_mistral_alone_are_refused(upload: dict[str, Any]) -> None:
    upload["siblings"] = [{"rfilename": name, "size": 1} for name in ("params.json", "consolidated.safetensors")]
    with pytest.raises(ModelError, match=r"^a/model is in Mistral's own format"):
        list_upload("a/model", None)


def test_the_second_copy_of_weights_is_not_downloaded(upload: dict[str, Any]) -> None:
    upload["siblings"] = [CONFIG, WEIGHTS, {"rfilename": "consolidated.safetensors", "size": 100}]
    listing = list_upload("a/model", None)
    assert listing is not None
    assert listing.missing_bytes == 101

"""The chat template and the sampling defaults that settings give take the place of the model's."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.engine.interface import SamplingDefaults
from server.loading.build_engine import build_codec
from server.loading.load_model import ModelParts, check_chat_settings, load_model
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.errors import ModelError
from server.model.multimodal.image_processor import MediaProcessor
from server.model.text.tokenizer import Tokenizer
from server.settings import ServeSettings, SettingsError
from tests.byte_tokenizer import save_byte_tokenizer
from tests.checkpoints import save_checkpoint
from tests.families import make_config
from tests.packed_models import pack_model
from tests.vision import make_image, save_vision

TEMPLATE = "{% for m in messages %}<{{ tone | default('plain') }}>{{ m.content }}{% endfor %}"
QUESTION = [{"role": "user", "content": "Hi"}]


def load(model: Path) -> ModelParts:
    return load_model(
        str(model),
        ServeSettings(
            chat_template=TEMPLATE,
            chat_template_kwargs={"tone": "warm"},
            generation_config="vllm",
            override_generation_config={"top_k": 5, "max_new_tokens": 7},
        ),
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_checkpoint(make_config("qwen3_moe"), tmp_path_factory.mktemp("model"))
    save_byte_tokenizer(folder, "{{ messages[0].content }}")
    (folder / "generation_config.json").write_text('{"temperature": 0.25, "eos_token_id": 3}')
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("is_pack", [False, True], ids=["checkpoint", "pack"])
def test_settings_take_the_place_of_the_models_files(checkpoint: Path, is_pack: bool, tmp_path: Path) -> None:
    if is_pack:
        pack_model(checkpoint, tmp_path / "pack")
    parts = load(tmp_path / "pack" if is_pack else checkpoint)
    codec = build_codec(parts, None)
    assert codec.decode(codec.encode_chat(QUESTION).token_ids) == "<warm>Hi"
    assert codec.decode(codec.encode_chat(QUESTION, options={"tone": "cool"}).token_ids) == "<cool>Hi"
    assert codec.chat_traits.options == {"tone": "warm"}
    assert parts.defaults == SamplingDefaults(top_k=5, max_new_tokens=7)
    assert 3 in parts.eos_token_ids


def test_images_use_the_template_of_the_settings(tmp_path: Path) -> None:
    save_checkpoint(make_config("qwen3_vl_moe"), tmp_path)
    save_vision("qwen3_vl_moe", tmp_path)
    content = [{"type": "image"}, {"type": "text", "text": "Q"}]
    seen = "{% for part in messages[0].content %}{{ '<|image_pad|>' if part.type == 'image' else 'AAAA' }}{% endfor %}"
    ids, _ = MediaProcessor(FolderCheckpoint(tmp_path), seen).encode_chat(
        [{"role": "user", "content": content}], [make_image(1)]
    )
    own, _ = MediaProcessor(FolderCheckpoint(tmp_path)).encode_chat(
        [{"role": "user", "content": content}], [make_image(1)]
    )
    assert len(ids) != len(own)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% if %}", r"Expected an expression, got 'end of statement block'"),
        ("{{ messages[0].nothing.more }}", "has no attribute 'nothing'"),
        ("{{ raise_exception('No.') }}", r"No; mend the template"),
    ],
)
def test_a_template_that_fails_is_refused_before_the_model_is_loaded(template: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=f"^--chat-template can't be used: .*{reason}"):
        check_chat_settings(ServeSettings(chat_template=template))


def test_a_template_for_parts_alone_is_taken() -> None:
    check_chat_settings(ServeSettings(chat_template="{{ messages[0].content[0].text.upper() }}"))


def test_a_template_that_needs_a_variable_gets_it() -> None:
    template = "{{ raise_exception('no tone') if tone is not defined }}{{ messages[0].content }}"
    check_chat_settings(ServeSettings(chat_template=template, chat_template_kwargs={"tone": 1}))


def test_a_reserved_variable_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"^--chat-template-kwargs must not hold 'messages', which the server sets"):
        check_chat_settings(ServeSettings(chat_template_kwargs={"messages": []}))


def test_a_tokenizer_that_renders_chats_itself_takes_no_template(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.model.text.tokenizer.renders_itself", lambda _: True)
    with pytest.raises(ModelError, match=r"renders chats without a template; leave --chat-template out"):
        Tokenizer(FolderCheckpoint(checkpoint), chat_template=TEMPLATE)

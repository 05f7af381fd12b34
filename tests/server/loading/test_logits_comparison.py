"""`greenroom verify --logits` compares a model as it is served with transformers' modules."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from server.cli import verify
from server.kernels.native.available import OFF, availability
from server.loading.logits_comparison import compare_logits
from server.model.errors import ModelError
from server.model.recognition import find_program
from server.settings import ServeSettings
from tests.byte_tokenizer import save_byte_tokenizer
from tests.checkpoints import make_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built"),
]


def test_each_layer_in_float32_is_within_rounding_of_the_modules() -> None:
    found = compare_logits(None, ServeSettings(dtype="float32"))
    assert [name for name, _ in found.by_layer] == ["GroupedAttention"] * len(found.by_layer)
    assert max(error for _, error in found.by_layer) < 1e-4
    assert found.logits < 1e-4
    assert found.num_same == found.num_tokens > 0


def test_earlier_states_beside_the_residual_stream_are_not_compared(tmp_path: Path) -> None:
    save_byte_tokenizer(make_checkpoint("inkling2_text", tmp_path))
    found = compare_logits(str(tmp_path), ServeSettings(dtype="float32"))
    assert max(error for _, error in found.by_layer) < 1e-4


def test_a_changed_layer_is_seen_from_there_on(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_model = find_program.compile_model

    def compile_changed(*args: object, **options: object) -> object:
        native = compile_model(*args, **options)  # type: ignore[arg-type]
        native._layers[3].mixer.spec.scaling *= 1.5
        return native

    monkeypatch.setattr(find_program, "compile_model", compile_changed)
    errors = [error for _, error in compare_logits(None, ServeSettings(dtype="float32")).by_layer]
    assert max(errors[:3]) < 1e-4
    assert min(errors[3:]) > 1e-3


def test_a_model_that_modules_run_has_nothing_to_compare() -> None:
    with pytest.raises(ModelError, match=r"nothing to compare: transformers' modules run all layers"):
        compare_logits(None, ServeSettings(kernels=OFF))


def test_the_command_prints_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("server/demo/model")
    arguments = Namespace(pack=folder, logits=True, json=True, dtype="float32", config=None)
    assert verify.run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["same_top_token"] > 0

"""Embeddings of n-grams, and gates of a residual stream, run natively with the results of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.models.qwen4_exp.modeling_qwen4_exp import Qwen4ExpTextGatedResidual, Qwen4ExpTextNGramEmbedding

from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from tests.checkpoints import make_checkpoint, save_checkpoint
from tests.families import make_config
from tests.server.model.native_layers.test_native_layers import TOLERANCE, load, load_modules, write

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built"),
]


def test_ngrams_end_where_a_text_has_ended(tmp_path: Path, pool: ComputePool) -> None:
    """They also begin anew in the pieces of a prompt, of which the states keep the last tokens."""
    config = make_config("qwen4_exp_text")
    config.ple_layer_ids, config.ngram_size, config.ple_embed_dim = [1, 3], 4, 48
    folder, end = save_checkpoint(config, tmp_path), config.eos_token_id
    native = load(folder, pool)
    assert native.facts.program.is_native
    prompts = [[5, 17, end, 9, 4, 5, end, end, 5, 17, 8], [end, 7]]
    for (tokens, logits), (wanted, expected) in zip(
        write(native, prompts), write(load_modules(folder), prompts), strict=True
    ):
        assert tokens == wanted
        assert (logits - expected).abs().max() <= TOLERANCE * (expected.max() - expected.min())


def test_gates_of_recurrent_heads_may_be_sigmoids(tmp_path: Path, pool: ComputePool) -> None:
    config = make_config("qwen4_exp_text")
    config.output_gate_type = "sigmoid"
    native = load(save_checkpoint(config, tmp_path), pool)
    assert native.facts.program.is_native
    ((_, logits), *_), ((_, expected), *_) = write(native), write(load_modules(tmp_path))
    assert (logits - expected).abs().max() <= TOLERANCE * (expected.max() - expected.min())


def test_ngrams_that_are_hashed_in_another_way_are_left_to_their_module(
    tmp_path: Path, pool: ComputePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shift(_: Qwen4ExpTextNGramEmbedding, tokens: torch.Tensor, shift: int, **_options: object) -> torch.Tensor:
        return tokens.roll(shift, 1)  # whatever has ended between

    monkeypatch.setattr(Qwen4ExpTextNGramEmbedding, "_shift_right_ignore_eos", shift)
    program = load(make_checkpoint("qwen4_exp_text", tmp_path), pool).facts.program
    assert "hashed in another way" in str(program.reason)


def test_rows_that_are_mixed_in_another_way_are_left_to_their_module(
    tmp_path: Path, pool: ComputePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Qwen4ExpTextGatedResidual.forward

    def with_more(module: Qwen4ExpTextGatedResidual, rows: torch.Tensor) -> object:
        mixed = forward(module, rows)
        return (*mixed[:2], mixed[2] * 1.5) if isinstance(mixed, tuple) else mixed

    monkeypatch.setattr(Qwen4ExpTextGatedResidual, "forward", with_more)
    program = load(make_checkpoint("qwen4_exp_text", tmp_path), pool).facts.program
    assert "its layers compute something else" in str(program.reason)

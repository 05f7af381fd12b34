"""Compares one family with transformers, and writes its line of docs/models.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from expert_store import ExpertCatalog, ExpertStore, find_shards, least_bytes, read_index
from server.model.checkpoint.tensor_map import map_checkpoint
from server.model.errors import ModelError
from server.model.model_building import build_model
from server.model.trunk.base_trunk import TrunkFacts
from server.model.trunk_loader import load_trunk
from tests.checkpoints import load_transformers_model, save_checkpoint, transformers_class
from tests.families import FAMILIES, make_config
from tests.server.model.test_parity import NEW_TOKENS, PROMPTS, TOLERANCE, generate

CHUNK = 3


@dataclass(frozen=True)
class Served:
    """A family whose tokens and logits equal transformers'."""

    model_type: str
    architecture: str
    attention: str  # or why its sequences run one after the other
    tensors: str
    is_sequential: bool

    def __str__(self) -> str:
        return f"| `{self.model_type}` | {self.architecture} | {self.attention} | {self.tensors} |"


@dataclass(frozen=True)
class Refused:
    """A family that is not served, and the error that refuses it."""

    model_type: str
    reason: str

    def __str__(self) -> str:
        return f"| `{self.model_type}` | {self.reason} |"


def examine(model_type: str, folder: Path) -> Served | Refused:
    """Compare a tiny random checkpoint with transformers, or check that its config alone is refused.

    Prompts of several lengths go in three tokens at a time, together with decodes, over the fewest experts that a step
    can run with.

    Raises:
        AssertionError: its results differ from transformers', or it is not refused for the reason in the table.
    """
    refusal = FAMILIES[model_type].refusal
    return _check_served(model_type, folder) if refusal is None else _check_refused(model_type, folder, refusal)


def _check_served(model_type: str, folder: Path) -> Served:
    config = make_config(model_type)
    save_checkpoint(config, folder)
    unused = map_checkpoint(build_model(config, torch.float32), read_index(find_shards(folder))).unused
    assert not unused, f"{model_type} does not use {unused[0]}"
    trunk = load_trunk(folder, torch.float32)
    store = ExpertStore(trunk.catalog, least_bytes(trunk.catalog, trunk.facts.top_k))
    by_sequence = FAMILIES[model_type].by_sequence
    expected_reason, reason = FAMILIES[model_type].sequential, trunk.facts.program.sequential_reason
    is_expected = reason is None if expected_reason is None else expected_reason in (reason or "")
    assert is_expected, f"{model_type} runs one sequence at a time: {reason}"
    written = generate(trunk, store, CHUNK)
    store.close()
    model = load_transformers_model(folder)
    # Llama 4 around its text ends in an error in transformers 5.25; the text has a head of its own
    reference = model.get_decoder() if hasattr(model.get_decoder(), "lm_head") else model
    for prompt, (tokens, logits) in zip(PROMPTS, written, strict=True):
        text, expected = _write(reference, prompt, by_steps=expected_reason is not None or by_sequence is not None)
        assert tokens == text, f"{model_type} writes another text than transformers"
        span = float(expected.max() - expected.min())
        error = float((logits - expected).abs().max()) / span
        assert error < TOLERANCE, f"{model_type}: logits differ by {error:.1e} of their range"
    attention = expected_reason or (f"{by_sequence}, sequence by sequence" if by_sequence else _attention(trunk.facts))
    return Served(model_type, type(model).__name__, attention, _tensors(trunk.catalog), expected_reason is not None)


def _write(model: Any, prompt: list[int], *, by_steps: bool) -> tuple[list[int], torch.Tensor]:
    """Return transformers' greedy tokens, and the logits that chose them, ``(tokens, vocabulary)``.

    Args:
        by_steps: whether the logits are those of each step, instead of one pass over the complete text.
    """
    fix_nllb_experts(model)
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = torch.tensor([prompt])
    result = model.generate(
        ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, output_logits=True, **options
    )
    text = result.sequences
    if by_steps:
        return text[0, -NEW_TOKENS:].tolist(), torch.cat(result.logits)
    with torch.inference_mode():
        return text[0, len(prompt) :].tolist(), model(text[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :]


def fix_nllb_experts(model: Any) -> None:
    """Make NLLB's experts those of its paper (arXiv 2207.04672, section 6.2); transformers 5.25 runs the first two.

    A token's output is the weighted sum of all experts that its router gives a weight.
    """

    def run(module: Any, rows: torch.Tensor, _mask: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        experts = [module[f"expert_{number}"] for number in range(module.num_experts)]
        outputs = torch.stack([expert(rows) for expert in experts], 1)  # (tokens, experts, hidden)
        return (1 - module.moe_token_dropout) * torch.einsum("te,teh->th", weights, outputs)

    for module in model.modules():
        if type(module).__name__ == "NllbMoeExperts":
            module.forward = partial(run, module)


def _check_refused(model_type: str, folder: Path, refusal: str) -> Refused:
    config = make_config(model_type)
    config.architectures = [transformers_class(config)._model_mapping[type(config)].__name__]
    config.save_pretrained(folder)
    save_file({}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=re.escape(refusal)) as raised:
        load_trunk(folder, torch.float32)
    return Refused(model_type, str(raised.value))


def _attention(facts: TrunkFacts) -> str:
    kinds = []
    for group in facts.kv_groups:
        window = "full" if group.window is None else "chunks" if group.is_chunked else "sliding window"
        for shape in group.shapes.values():
            parts = window, "latent (MLA)" if shape.is_latent else "", "keys by an indexer" if shape.index_dim else ""
            kinds.append(", ".join(filter(None, parts)))
    kept = {key.kind for key in facts.states}
    if kept:
        kinds.append("convolution" if kept == {"conv"} else "recurrent")
    return " and ".join(sorted(set(kinds)))


def _tensors(catalog: ExpertCatalog) -> str:
    """Return the names of the tensors of an expert of the last layer, without the layer's prefix."""
    recipe = catalog.layers[max(catalog.layers)].experts[0]
    names = {source.name for part in recipe.values() for source in part.sources}
    within = [re.sub(r"^.*?\.\d+\.", "", name) for name in sorted(names)]
    return ", ".join("`" + re.sub(r"[.](expert_)?[0-9]+[.]", r".\1*.", name) + "`" for name in within)

"""One family against stock transformers, and the line that docs/models.md has of it."""

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
from server.model.checkpoint_map import map_checkpoint
from server.model.errors import ModelError
from server.model.loading import build_model, load_trunk
from server.model.trunk import TrunkFacts
from tests.checkpoints import load_stock, save_checkpoint, stock_class
from tests.families import FAMILIES, make_config
from tests.server.model.test_parity import NEW_TOKENS, PROMPTS, TOLERANCE, generate

CHUNK = 3


@dataclass(frozen=True)
class Served:
    """A family whose tokens and logits are stock's."""

    model_type: str
    architecture: str
    attention: str  # or why its sequences are computed one after the other
    tensors: str
    is_solo: bool

    def __str__(self) -> str:
        return f"| `{self.model_type}` | {self.architecture} | {self.attention} | {self.tensors} |"


@dataclass(frozen=True)
class Refused:
    """A family that is not served, and what it is refused with."""

    model_type: str
    reason: str

    def __str__(self) -> str:
        return f"| `{self.model_type}` | {self.reason} |"


def examine(model_type: str, folder: Path) -> Served | Refused:
    """Compare a tiny random checkpoint with stock transformers, or see it refused by its config alone.

    Prompts of several lengths go in three tokens at a time, together with decodes, over the fewest experts that a step
    can do with.

    Raises:
        AssertionError: the family does not give what stock gives, or is not refused for what the table says.
    """
    refusal = FAMILIES[model_type].refusal
    return _see_served(model_type, folder) if refusal is None else _see_refused(model_type, folder, refusal)


def _see_served(model_type: str, folder: Path) -> Served:
    config = make_config(model_type)
    save_checkpoint(config, folder)
    unused = map_checkpoint(build_model(config, torch.float32), read_index(find_shards(folder))).unused
    assert not unused, f"{model_type} has no place for {unused[0]}"
    trunk = load_trunk(folder, torch.float32)
    store = ExpertStore(trunk.catalog, least_bytes(trunk.catalog, trunk.facts.top_k))
    solo, reason = FAMILIES[model_type].solo, trunk.facts.solo_reason
    assert (reason is None) if solo is None else (solo in (reason or "")), f"{model_type} is computed alone: {reason}"
    written = generate(trunk, store, CHUNK)
    store.close()
    whole = load_stock(folder)
    # Llama 4 around its text ends in an error in transformers 5.24; the text has a head of its own
    stock = whole.get_decoder() if hasattr(whole.get_decoder(), "lm_head") else whole
    for prompt, (tokens, logits) in zip(PROMPTS, written, strict=True):
        text, expected = _write(stock, prompt, by_steps=solo is not None)
        assert tokens == text, f"{model_type} writes another text than stock"
        span = float(expected.max() - expected.min())
        error = float((logits - expected).abs().max()) / span
        assert error < TOLERANCE, f"{model_type}: logits differ by {error:.1e} of their range"
    attention = solo or _attention(trunk.facts)
    return Served(model_type, type(whole).__name__, attention, _tensors(trunk.catalog), solo is not None)


def _write(stock: Any, prompt: list[int], *, by_steps: bool) -> tuple[list[int], torch.Tensor]:
    """Stock's greedy tokens, and the logits that chose them, ``(tokens, vocabulary)``.

    Args:
        by_steps: whether logits are those of each step, else those of the whole text at once.
    """
    mend_experts(stock)
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = torch.tensor([prompt])
    result = stock.generate(
        ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, output_logits=True, **options
    )
    text = result.sequences
    if by_steps:
        return text[0, -NEW_TOKENS:].tolist(), torch.cat(result.logits)
    with torch.inference_mode():
        return text[0, len(prompt) :].tolist(), stock(text[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :]


def mend_experts(stock: Any) -> None:
    """Let NLLB's experts be those of its paper (arXiv 2207.04672, section 6.2): transformers 5.24 runs the first two.

    Each token goes through every expert that its router weighs, and comes out as their weighted sum.
    """

    def run(module: Any, rows: torch.Tensor, _mask: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        experts = [module[f"expert_{number}"] for number in range(module.num_experts)]
        outputs = torch.stack([expert(rows) for expert in experts], 1)  # (tokens, experts, hidden)
        return (1 - module.moe_token_dropout) * torch.einsum("te,teh->th", weights, outputs)

    for module in stock.modules():
        if type(module).__name__ == "NllbMoeExperts":
            module.forward = partial(run, module)


def _see_refused(model_type: str, folder: Path, refusal: str) -> Refused:
    config = make_config(model_type)
    config.architectures = [stock_class(config)._model_mapping[type(config)].__name__]
    config.save_pretrained(folder)
    save_file({}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=re.escape(refusal)) as raised:
        load_trunk(folder, torch.float32)
    return Refused(model_type, str(raised.value))


def _attention(facts: TrunkFacts) -> str:
    kinds = []
    for group in facts.kv_groups:
        window = "full" if group.window is None else "chunks" if group.is_chunked else "sliding window"
        kinds += [f"{window}, latent (MLA)" if shape.is_latent else window for shape in group.shapes.values()]
    kept = {key.kind for key in facts.states}
    if kept:
        kinds.append("convolution" if kept == {"conv"} else "recurrent")
    return " and ".join(sorted(set(kinds)))


def _tensors(catalog: ExpertCatalog) -> str:
    """The names of the tensors that an expert of the last layer is read from, after its layer's."""
    recipe = catalog.layers[max(catalog.layers)].experts[0]
    names = {source.name for part in recipe.values() for source in part.sources}
    within = [re.sub(r"^.*?\.\d+\.", "", name) for name in sorted(names)]
    return ", ".join("`" + re.sub(r"[.](expert_)?[0-9]+[.]", r".\1*.", name) + "`" for name in within)

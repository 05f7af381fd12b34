"""Quality of the packed expert formats: ``python -m benchmarks.format_quality --corpus DIR``.

Packs the bundled model in each format, reads the experts back through the store, dequantises them, and puts them into
transformers' own model in float32. Prints held-out perplexity by domain, and the cosine similarity of the logits of
each held-out position to those of the original checkpoint. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from expert_store import ExpertKey, ExpertStore, Weights, open_pack, write_pack
from server.kernels import expert
from server.kernels.expert import transposed_names
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.locate import BUNDLED, BUNDLED_NAME
from server.model.checkpoint.read_config import read_config
from server.model.checkpoint.tensor_map import experts_modules, layer_numbers
from server.model.checkpoint.weight_formats import WEIGHT_FORMATS, WeightFormat
from server.model.model_building import build_model
from server.model.opening.packing import pack_source
from training.corpus import Domain, read_corpus
from training.measure import held_out_batches, mean_perplexity, measure

ROW_TOKENS = 256


def transformers_model() -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    return model.eval()


def dequantised(weights: Weights, name: str, is_transposed: bool) -> torch.Tensor:
    matrix = expert.dequantised(weights, name)
    if matrix is None:
        return weights[name].float()
    return matrix.mT if is_transposed else matrix


@torch.no_grad()
def with_packed_experts(folder: Path) -> tuple[PreTrainedModel, int]:
    """Return transformers' model with the experts of a pack, and the slot bytes of one expert."""
    model, catalog = transformers_model(), open_pack(folder).catalog
    modules: dict[str, Any] = experts_modules(model)
    numbers = layer_numbers(list(modules))
    store = ExpertStore(catalog, catalog.total_bytes)
    for name, module in modules.items():
        with store.lease({ExpertKey(numbers[name], expert): 1 for expert in range(module.num_experts)}) as lease:
            for key, weights in lease:
                for parameter, value in module.named_parameters(recurse=False):
                    value[key.expert].copy_(dequantised(weights, parameter, parameter in transposed_names(module)))
    store.close()
    return model, max(layout.slot_bytes for layout in catalog.layouts)


def pack(folder: Path, weights: WeightFormat) -> None:
    source = pack_source(
        build_model(read_config(BUNDLED), torch.bfloat16), FolderCheckpoint(BUNDLED), BUNDLED_NAME, weights
    )
    write_pack(source, folder, 1, lambda _: None)


@torch.no_grad()
def cosines(model: PreTrainedModel, original: PreTrainedModel, domains: list[Domain]) -> torch.Tensor:
    """Return the cosine similarity of the logits of each held-out position, ``(positions,)``."""

    def by_batch() -> Iterator[torch.Tensor]:
        for domain in domains:
            for rows in held_out_batches(domain.held_out, ROW_TOKENS):
                one, other = (each(input_ids=rows[:, :-1], use_cache=False).logits for each in (model, original))
                yield torch.cosine_similarity(one, other, dim=-1).flatten()

    return torch.cat(list(by_batch()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of the bundled model's corpus")
    options = parser.parse_args()
    domains = read_corpus(options.corpus, Tokenizer.from_file(str(BUNDLED / "tokenizer.json")))
    original = transformers_model()
    held = [measure(original, domain, ROW_TOKENS) for domain in domains]
    result: dict[str, Any] = {
        "benchmark": "formats",
        "positions": sum(each.num_tokens for each in held),
        "original": {
            "perplexity": round(mean_perplexity(held), 4),
            "by_domain": {domain.name: round(each.perplexity, 3) for domain, each in zip(domains, held, strict=True)},
        },
    }
    print("original:", result["original"])
    for weights in WEIGHT_FORMATS:
        with tempfile.TemporaryDirectory() as name:
            pack(Path(name), weights)
            model, expert_bytes = with_packed_experts(Path(name))
        held = [measure(model, domain, ROW_TOKENS) for domain in domains]
        similarity = cosines(model, original, domains)
        result[weights] = {
            "expert_bytes": expert_bytes,
            "cosine_mean": round(float(similarity.mean()), 6),
            "cosine_min": round(float(similarity.min()), 6),
            "perplexity": round(mean_perplexity(held), 4),
            "by_domain": {domain.name: round(each.perplexity, 3) for domain, each in zip(domains, held, strict=True)},
        }
        print(f"{weights}:", result[weights])
    assert math.isfinite(result["int4"]["perplexity"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Published quantised checkpoints give the results of transformers with the dequantised weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from expert_store import ExpertStore, least_bytes
from server.model.trunk_loader import load_trunk
from tests.checkpoints import load_transformers_model, save_checkpoint
from tests.families import make_config
from tests.modelopt import mixed, nvfp4
from tests.quantise import BLOCK, GROUP, awq, bitsandbytes, compressed_tensors, fp8, gptq, modelopt, mxfp4, publish
from tests.server.model.checkpoint.test_packing import logits_of, pack
from tests.server.model.test_parity import PROMPTS, TOLERANCE, generate

pytestmark = pytest.mark.slow

CHUNK, NEW_TOKENS = 3, 3
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
FORMATS = {
    "mxfp4": mxfp4,
    "fp8": fp8,
    "fp8 of complete matrices": partial(fp8, None),
    "fp8 with exponents for scales": partial(fp8, BLOCK, torch.float8_e8m0fnu),
    "fp8 with bytes for scales": partial(fp8, BLOCK, torch.uint8),
    "mxfp8": partial(fp8, (1, GROUP), torch.uint8, "mxfp8"),
    "ct int4": partial(compressed_tensors, "pack-quantized", **INT4),
    "ct int4 in float16": partial(compressed_tensors, "pack-quantized", torch.float16, **INT4),
    "ct int4 in float32": partial(compressed_tensors, "pack-quantized", torch.float32, **INT4),
    "ct int4 asymmetric": partial(compressed_tensors, "pack-quantized", **INT4, symmetric=False),
    "ct int4 of channels": partial(compressed_tensors, "pack-quantized", num_bits=4, type="int", strategy="channel"),
    "ct int8": partial(compressed_tensors, "pack-quantized", **{**INT4, "num_bits": 8}),
    "ct int8 asymmetric": partial(compressed_tensors, "pack-quantized", **{**INT4, "num_bits": 8}, symmetric=False),
    "ct int8 of channels": partial(compressed_tensors, "int-quantized", num_bits=8, type="int", strategy="channel"),
    "ct fp8 of channels": partial(compressed_tensors, "float-quantized", **FP8, strategy="channel"),
    "ct fp8 of tensors": partial(compressed_tensors, "float-quantized", **FP8, strategy="tensor"),
    "ct fp8 of blocks": partial(
        compressed_tensors, "float-quantized", **FP8, strategy="block", block_structure=list(BLOCK)
    ),
    "ct nvfp4": partial(
        compressed_tensors,
        "nvfp4-pack-quantized",
        torch.float32,
        num_bits=4,
        type="float",
        strategy="tensor_group",
        group_size=16,
    ),
    "ct mxfp4": partial(
        compressed_tensors,
        "mxfp4-pack-quantized",
        torch.float32,
        num_bits=4,
        type="float",
        strategy="group",
        group_size=32,
    ),
    "modelopt nvfp4": nvfp4,
    "modelopt transposed nvfp4": partial(nvfp4, is_transposed=True),
    "modelopt fp8 and nvfp4": mixed,
    "awq": awq,
    "bitsandbytes": bitsandbytes,
    "gptq": gptq,
    "gptq v2": partial(gptq, layout="gptq_v2"),
    "gptq int8": partial(gptq, 8),
    "gptq in another order": partial(gptq, has_order=True),
    "gptq int8 in another order": partial(gptq, 8, has_order=True),
}
SERVED = [
    *(("qwen3_moe", name) for name in FORMATS if name not in {"mxfp4", "modelopt transposed nvfp4"}),
    *(("gpt_oss", name) for name in ("mxfp4", "modelopt transposed nvfp4")),
    ("llama4_text", "modelopt transposed nvfp4"),
    *((model_type, "modelopt nvfp4") for model_type in ("deepseek_v3", "step3p7", "gemma4_text", "qwen3_vl_moe")),
    *(("mixtral", name) for name in ("fp8", "ct int4", "awq", "gptq")),
    *(("deepseek_v3", name) for name in ("fp8", "ct int4", "awq", "gptq")),
    ("minimax_m2", "fp8"),
    ("sarvam_moe", "fp8"),  # queries, keys and values in one matrix
    ("gemma4_text", "fp8"),  # experts in one tensor
    ("aria_text", "fp8"),  # in one tensor, transposed
    ("qwen3_vl_moe", "fp8"),  # in one tensor, transposed while loading
    ("jetmoe", "fp8"),
    ("step3p7", "fp8"),
    ("kimi_k25", "ct int4"),
]


def reference_logits(folder: Path) -> list[tuple[list[int], torch.Tensor]]:
    """Generate greedily for each prompt alone in transformers; returns tokens and their logits."""
    model = load_transformers_model(folder)
    results = []
    for prompt in PROMPTS:
        text = model.generate(
            torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        with torch.inference_mode():
            logits = model(text[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :]
        results.append((text[0, len(prompt) :].tolist(), logits))
    return results


@pytest.mark.parametrize(("model_type", "name"), SERVED, ids=lambda value: value.replace(" ", "_"))
def test_a_quantised_checkpoint_gives_the_results_of_its_dequantised_weights(
    model_type: str, name: str, tmp_path: Path
) -> None:
    """With the smallest cache, in one ragged batch with chunked prompts."""
    config = make_config(model_type)
    if name.endswith("fp4"):  # their groups are larger
        text = config.get_text_config()
        text.hidden_size = 64
        text.intermediate_size = text.moe_intermediate_size = 32
    plain = save_checkpoint(config, tmp_path / "plain")
    quantised, reference = publish(plain, tmp_path, FORMATS[name]())
    trunk = load_trunk(quantised, torch.float32)
    store = ExpertStore(trunk.catalog, least_bytes(trunk.catalog, trunk.facts.top_k))
    written = generate(trunk, store, CHUNK, NEW_TOKENS)
    store.close()
    for (tokens, logits), (wanted_tokens, wanted_logits) in zip(written, reference_logits(reference), strict=True):
        span = float(wanted_logits.max() - wanted_logits.min())
        assert float((logits - wanted_logits).abs().max()) < TOLERANCE * span
        assert tokens == wanted_tokens


@pytest.mark.parametrize("is_packed", [False, True])
def test_what_modelopt_exports_gives_the_logits_of_the_same_codes_in_another_format(
    tmp_path: Path, is_packed: bool
) -> None:
    """Its settings are in a file beside the config."""
    plain = save_checkpoint(make_config("qwen3_moe"), tmp_path / "plain")
    quantised, _ = publish(plain, tmp_path, fp8(None))
    folder = pack(quantised, tmp_path / "pack of fp8") if is_packed else quantised
    wanted = logits_of(load_trunk(folder, torch.float32))
    exported = modelopt(quantised)
    folder = pack(exported, tmp_path / "pack") if is_packed else exported
    found = logits_of(load_trunk(folder, torch.float32))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))

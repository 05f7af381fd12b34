"""Native layers give transformers' logits for prompts with images, and the same bits in chunks and in company."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from server.kernels.compute_pool import ComputePool
from server.kernels.native.available import availability
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.chunk_weights import ChunkWeights, WeightedAdapter
from server.model.lora_adapter import ExpertTarget, LoraAdapter, LoraMatrix
from server.model.multimodal.image_processor import MediaProcessor
from server.model.trunk.trunk import Trunk
from tests.checkpoints import load_transformers_model
from tests.native_families import NATIVE_VISIONS
from tests.server.model.multimodal.test_image_parity import ask_reference, make_prompts, save_model, write
from tests.server.model.native_layers.test_native_layers import BLOCK, load
from tests.server.model.test_parity import TOLERANCE

pytestmark = [
    pytest.mark.usefixtures("whole_llama4"),
    pytest.mark.slow,
    pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built"),
]


@pytest.mark.parametrize("model_type", NATIVE_VISIONS)
def test_native_layers_take_images(model_type: str, tmp_path: Path, pool: ComputePool) -> None:
    trunk = load(save_model(model_type, tmp_path), pool)
    assert trunk.is_invariant, trunk.facts.program.describe()
    prompts, reference = make_prompts(MediaProcessor(FolderCheckpoint(tmp_path))), load_transformers_model(tmp_path)
    expected = [ask_reference(reference, prompt) for prompt in prompts]
    complete, pieces = (write(trunk, prompts, chunk, block_size=BLOCK) for chunk in (64, 5))
    results = zip(prompts, complete, pieces, expected, strict=True)
    for prompt, (tokens, logits), (_, in_pieces), (wanted_tokens, wanted) in results:
        assert float((logits - wanted).abs().max()) < TOLERANCE * float(wanted.max() - wanted.min())
        assert tokens == wanted_tokens
        ((_, alone),) = write(trunk, [prompt], 64, block_size=BLOCK)
        assert torch.equal(logits, in_pieces)
        assert torch.equal(logits, alone)


def adapter_of_experts(trunk: Trunk) -> LoraAdapter:
    """Return an adapter that adds to the second matrix of every expert."""
    random = torch.Generator().manual_seed(0)

    def matrix(outputs: int, inputs: int) -> LoraMatrix:
        down, up = (torch.randn(shape, generator=random) for shape in ((2, inputs), (outputs, 2)))
        return LoraMatrix(down, up, 0.1)

    experts = {
        ExpertTarget(layer, expert, "down_proj"): (matrix(*module.parameter_shapes["down_proj"]),)
        for module, layer in trunk.expert_numbers.items()
        for expert in range(module.num_experts)
    }
    return LoraAdapter("law", {}, experts)


def test_experts_for_images_take_adapters(tmp_path: Path, pool: ComputePool) -> None:
    folder = save_model("ernie4_5_vl_moe", tmp_path)
    native, modules = load(folder, pool), load(folder, None)
    prompts = make_prompts(MediaProcessor(FolderCheckpoint(folder)))
    weights = ChunkWeights(adapters=(WeightedAdapter(adapter_of_experts(native), 1.0),))
    own = write(native, prompts, 64, block_size=BLOCK)
    found, expected = (write(trunk, prompts, 64, block_size=BLOCK, weights=weights) for trunk in (native, modules))
    for (tokens, logits), (wanted_tokens, wanted) in zip(found, expected, strict=True):
        assert tokens == wanted_tokens
        assert float((logits - wanted).abs().max()) < TOLERANCE * float(wanted.max() - wanted.min())
    assert [torch.equal(one[1], other[1]) for one, other in zip(own, found, strict=True)] == [True, False, False]

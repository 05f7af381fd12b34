"""Prompts with images give the logits of transformers' own model, whatever else is in a step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from expert_store import ExpertStore, PrefetchMode, least_bytes, make_prefetcher
from server.model.attention.kv_cache import KVCache
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.processor_files import NoImagesError
from server.model.chunk_weights import ChunkWeights
from server.model.multimodal.image_processor import MediaProcessor
from server.model.prompt_media import PromptMedia
from server.model.step import SequenceChunk
from server.model.text.tokenizer import ChatTemplateError
from server.model.trunk.trunk import Trunk
from server.model.trunk_loader import load_trunk
from tests.checkpoints import load_transformers_model, save_checkpoint
from tests.families import FAMILIES, make_config
from tests.models_page import PAGE
from tests.server.model.test_parity import BLOCK_SIZE, TOLERANCE
from tests.vision import VISIONS, make_image, save_vision

NEW_TOKENS = 5
BLOCKS = 48  # KV cache blocks per sequence
TYPES = ("mm_token_type_ids", "moe_mm_token_type_ids")  # per-token types of the prompt
Prompt = tuple[list[int], PromptMedia | None]

pytestmark = pytest.mark.usefixtures("whole_llama4")


def save_model(model_type: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    save_checkpoint(make_config(model_type), folder, dtype)
    save_vision(model_type, folder)
    return folder


def make_prompts(processor: MediaProcessor) -> list[Prompt]:
    """A prompt with one image, a longer one with two, and one without any."""
    image, other = {"type": "image"}, {"type": "text", "text": "w5 w17"}
    one = [{"role": "user", "content": [other, image, {"type": "text", "text": "w9"}]}]
    two = [{"role": "user", "content": [image, other]}, {"role": "assistant", "content": [other]}]
    two.append({"role": "user", "content": [other, image]})
    return [
        processor.encode_chat(one, [make_image(1)]),
        processor.encode_chat(two, [make_image(2, 24, 12), make_image(3)]),
        ([5, 17, 99, 3, 42], None),
    ]


def write(
    trunk: Trunk,
    prompts: Sequence[Prompt],
    chunk: int,
    steps: int = NEW_TOKENS,
    prefetch: PrefetchMode = "off",
    block_size: int = BLOCK_SIZE,
    weights: ChunkWeights | None = None,
) -> list[tuple[list[int], torch.Tensor]]:
    """All prompts in one ragged batch, greedily, in chunks of ``chunk`` tokens; returns tokens and their logits.

    Memory holds only as many experts as one token chooses.

    Args:
        weights: of all prompts but the first, beside the model's own.
    """
    groups, count = trunk.facts.kv_groups, len(prompts)
    cache = KVCache(groups, [BLOCKS * count] * len(groups), block_size)
    states = trunk.new_states(count)
    store = ExpertStore(trunk.catalog, least_bytes(trunk.catalog, trunk.facts.top_k))
    experts = {layer: len(trunk.catalog.layers[layer].experts) for layer in trunk.facts.text_layers}
    prefetcher = make_prefetcher(prefetch, store, experts, trunk.gates)
    texts, cached = [list(token_ids) for token_ids, _ in prompts], [0] * count
    logits: list[list[torch.Tensor]] = [[] for _ in prompts]
    while active := [i for i in range(count) if len(logits[i]) < steps]:
        ends = {i: _end(prompts[i][1], cached[i], cached[i] + chunk) for i in active}
        chunks = [
            SequenceChunk(
                texts[i][cached[i] : ends[i]],
                cached[i],
                [range(BLOCKS * i, BLOCKS * (i + 1))] * len(groups),
                slot=i,
                media=prompts[i][1],
                num_prompt=len(prompts[i][0]),
                weights=weights if i else None,
            )
            for i in active
        ]
        rows = trunk.forward(chunks, cache, store, prefetcher, states).logits
        for i, piece, row in zip(active, chunks, rows, strict=True):
            cached[i] += piece.num_tokens
            if cached[i] == len(texts[i]):
                logits[i].append(row)
                texts[i].append(int(row.argmax()))
    store.close()
    return [
        (text[len(token_ids) :], torch.stack(rows))
        for text, (token_ids, _), rows in zip(texts, prompts, logits, strict=True)
    ]


def _end(media: PromptMedia | None, first: int, last: int) -> int:
    """The end of a chunk, moved so that it splits no bidirectional image."""
    for start, end in () if media is None else media.bidirectional_spans:
        if start < last < end:
            return start if start > first else end
    return last


def ask_reference(reference: Any, prompt: Prompt, *, by_steps: bool = False) -> tuple[list[int], torch.Tensor]:
    """Generate by transformers' own model; returns tokens and their logits, ``(tokens, vocabulary)``.

    Args:
        by_steps: return the logits of each step, else those of one pass over the complete text.
    """
    token_ids, media = prompt
    inputs: dict[str, Any] = {} if media is None else dict(media.inputs)
    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    inputs |= {name: value.float() for name, value in tensors.items() if value.is_floating_point()}
    result = reference.generate(
        torch.tensor([token_ids]),
        attention_mask=torch.ones(1, len(token_ids), dtype=torch.long),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
        **inputs,
    )
    text = result.sequences
    if by_steps:
        return text[0, len(token_ids) :].tolist(), torch.cat(result.logits)
    for name in set(TYPES) & set(inputs):
        inputs[name] = torch.cat([inputs[name], inputs[name].new_zeros(1, NEW_TOKENS - 1)], 1)
    with torch.inference_mode():
        complete = reference(text[:, :-1], attention_mask=torch.ones_like(text[:, :-1]), use_cache=False, **inputs)
    return text[0, len(token_ids) :].tolist(), complete.logits[0, len(token_ids) - 1 :]


@dataclass(frozen=True)
class Loaded:
    """A model that takes images, and transformers' own."""

    model_type: str
    trunk: Trunk
    processor: MediaProcessor
    reference: Any


@pytest.fixture(scope="module", params=VISIONS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = save_model(request.param, tmp_path_factory.mktemp(request.param))
    trunk, reference = load_trunk(folder, torch.float32), load_transformers_model(folder)
    return Loaded(request.param, trunk, MediaProcessor(FolderCheckpoint(folder)), reference)


@pytest.mark.slow
def test_images_give_the_logits_of_transformers_own_model(loaded: Loaded) -> None:
    trunk, prompts = loaded.trunk, make_prompts(loaded.processor)
    by_steps = FAMILIES[loaded.model_type].sequential is not None
    expected = [ask_reference(loaded.reference, prompt, by_steps=by_steps) for prompt in prompts]
    for chunk in (64, 5):
        for (tokens, logits), (wanted_tokens, wanted_logits) in zip(
            write(trunk, prompts, chunk), expected, strict=True
        ):
            span = float(wanted_logits.max() - wanted_logits.min())
            assert float((logits - wanted_logits).abs().max()) < TOLERANCE * span
            assert tokens == wanted_tokens


@pytest.mark.slow
def test_another_image_gives_other_logits(loaded: Loaded) -> None:
    """So the comparison with transformers depends on the image's content."""
    trunk, processor = loaded.trunk, loaded.processor
    message = [{"role": "user", "content": [{"type": "image"}]}]
    prompts = [processor.encode_chat(message, [make_image(seed)]) for seed in (1, 2)]
    assert prompts[0][0] == prompts[1][0]
    (_, one), (_, other) = write(trunk, prompts, 64, steps=1)
    assert float((one - other).abs().max()) > TOLERANCE * float(one.max() - one.min())


@pytest.mark.slow
@pytest.mark.parametrize("prefetch", ["gate", "coactivation"])
def test_images_that_come_token_by_token_are_no_decodes_to_the_prefetcher(
    prefetch: PrefetchMode, tmp_path: Path
) -> None:
    """ERNIE has experts for images, to which no text token is routed."""
    save_model("ernie4_5_vl_moe", tmp_path)
    trunk, prompts = load_trunk(tmp_path, torch.float32), make_prompts(MediaProcessor(FolderCheckpoint(tmp_path)))
    complete, pieces = write(trunk, prompts, 64), write(trunk, prompts, 1, prefetch=prefetch)
    assert [tokens for tokens, _ in pieces] == [tokens for tokens, _ in complete]


def test_a_text_model_takes_no_images(tmp_path: Path) -> None:
    save_checkpoint(make_config("qwen3_moe"), tmp_path)
    with pytest.raises(NoImagesError, match="the model takes no images"):
        MediaProcessor(FolderCheckpoint(tmp_path))


def test_a_checkpoint_without_an_image_processor_takes_no_images(tmp_path: Path) -> None:
    save_checkpoint(make_config("qwen3_vl_moe"), tmp_path)
    with pytest.raises(NoImagesError, match="the checkpoint's image processor can't be used") as raised:
        MediaProcessor(FolderCheckpoint(tmp_path))
    assert str(tmp_path) not in str(raised.value)


def test_a_processor_that_needs_torchvision_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model("qwen3_vl_moe", tmp_path)
    missing = ImportError("Qwen3VLProcessor requires the Torchvision library\nbut it was not found")
    monkeypatch.setattr("server.model.checkpoint.processor_files._build", Mock(side_effect=missing))
    with pytest.raises(NoImagesError, match=r"it needs torchvision; install greenroom\[images\]"):
        MediaProcessor(FolderCheckpoint(tmp_path))


def test_more_images_in_the_text_than_there_are_is_refused(tmp_path: Path) -> None:
    """A client may write the placeholder token in its text."""
    save_model("qwen3_vl_moe", tmp_path)
    content = [{"type": "image"}, {"type": "text", "text": "<|image_pad|>"}]
    with pytest.raises(ChatTemplateError, match="the model's processor refuses the images"):
        MediaProcessor(FolderCheckpoint(tmp_path)).encode_chat([{"role": "user", "content": content}], [make_image(1)])


def test_an_image_that_the_processor_rejects_is_refused(tmp_path: Path) -> None:
    save_model("qwen3_vl_moe", tmp_path)
    with pytest.raises(ChatTemplateError, match="the model's processor refuses the images: absolute aspect ratio"):
        MediaProcessor(FolderCheckpoint(tmp_path)).encode_chat(
            [{"role": "user", "content": [{"type": "image"}]}], [make_image(1, 4000, 2)]
        )


def test_code_beside_a_processor_is_never_run(tmp_path: Path) -> None:
    save_model("qwen3_vl_moe", tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('code of a checkpoint was run')")
    path = tmp_path / "preprocessor_config.json"
    auto_map = {"AutoImageProcessor": "evil.Processor", "AutoProcessor": "evil.Processor"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": auto_map}))
    assert MediaProcessor(FolderCheckpoint(tmp_path)).placeholder == 100


@pytest.mark.slow
def test_a_placeholder_without_an_image_is_a_token_like_any_other(loaded: Loaded) -> None:
    """A client may write it in its text."""
    token_ids = [5, 100, 17, 100, 100, 3]
    ((_, logits),) = write(loaded.trunk, [(token_ids, None)], 64, steps=1)
    with torch.inference_mode():
        expected = loaded.reference(torch.tensor([token_ids]), use_cache=False).logits[0, -1]
    assert float((logits[0] - expected).abs().max()) < TOLERANCE * float(expected.max() - expected.min())


def test_docs_models_says_for_which_families_this_is_checked() -> None:
    listed = ", ".join(f"`{model_type}`" for model_type in sorted(VISIONS))
    assert f"## With images: {len(VISIONS)}\n\n{listed}.\n" in PAGE.read_text("utf-8")

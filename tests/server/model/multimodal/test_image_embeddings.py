"""Images merged into the inputs of a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from server.model.multimodal.image_embeddings import MediaError, StepImages, _ChunkRows, _text_inputs
from server.model.prompt_media import PromptMedia, TextInputs
from server.model.step import SequenceChunk

PROMPT = [1, 9, 9, 2]


def rows(first: int, num_cached: int, num_tokens: int, inputs: TextInputs) -> _ChunkRows:
    media = PromptMedia(PROMPT, {}, text_inputs=inputs)
    return _ChunkRows(first, SequenceChunk([0] * num_tokens, num_cached, [], media=media), inputs)


def merge(images: StepImages, num_tokens: int, **more: Any) -> dict[str, Any]:
    indices = torch.arange(num_tokens)[None]
    return images.merge({"inputs_embeds": torch.zeros(1, num_tokens, 2), "position_ids": indices, **more})


def test_each_chunk_of_a_prompt_gets_its_own_part() -> None:
    inputs = TextInputs({"inputs_embeds": torch.arange(8.0).view(4, 2)}, {}, None)
    merged = merge(StepImages([rows(1, 2, 2, inputs)]), 4)
    assert merged["inputs_embeds"][0].tolist() == [[0, 0], [4, 5], [6, 7], [0, 0]]
    assert merged["position_ids"].tolist() == [[0, 1, 2, 3]]


def test_an_argument_that_text_lacks_is_zero_for_text() -> None:
    inputs = TextInputs({"types": torch.tensor([0, 1, 1, 0])}, {}, None)
    assert merge(StepImages([rows(2, 1, 2, inputs)]), 5)["types"].tolist() == [[0, 0, 1, 1, 0]]


def test_tokens_after_the_prompt_go_on_from_its_last_position() -> None:
    """Two by two patches of an image lie at positions 1 and 2 of three axes; the text after it continues at 3."""
    positions = torch.tensor([[0, 1, 1, 2], [0, 1, 1, 2], [0, 1, 2, 2]])
    indices = torch.tensor([[3, 4, 5, 7]])
    merged = merge(StepImages([rows(0, 3, 3, TextInputs({}, {}, positions))]), 4, position_ids=indices)
    assert merged["position_ids"].shape == (3, 1, 4)
    # The last token of the prompt, two that follow it, and one of another sequence.
    assert merged["position_ids"][:, 0, 0].tolist() == [2, 2, 2]
    assert merged["position_ids"][0, 0, 1:].tolist() == [3, 4, 7]


def test_rows_of_masked_tokens_are_those_of_the_chunk() -> None:
    mask, levels = (
        torch.tensor([False, True, True, False]),
        [torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]])],
    )
    inputs = TextInputs({"visual_pos_masks": mask}, {"deepstack_visual_embeds": levels}, None)
    merged = merge(StepImages([rows(0, 2, 2, inputs), rows(2, 0, 2, inputs)]), 4)
    assert merged["visual_pos_masks"].tolist() == [[True, False, False, True]]
    assert [level.flatten().tolist() for level in merged["deepstack_visual_embeds"]] == [[2, 1], [4, 3]]


@pytest.mark.parametrize("value", [torch.zeros(3, 4), [torch.zeros(1, 4)], {"a": torch.zeros(1, 4)}], ids=type)
def test_an_input_that_cannot_be_merged_is_refused_by_name(value: Any) -> None:
    with pytest.raises(MediaError, match="passes strange to its text part, which is not one value per token"):
        _text_inputs({"inputs_embeds": torch.zeros(1, 4, 2), "strange": value}, 4)


def test_flags_and_inputs_that_the_step_sets_are_left_out() -> None:
    inputs = _text_inputs(
        {"attention_mask": {"full": None}, "cache": object(), "return_dict": True, "use_cache": False}, 4
    )
    assert (inputs.per_token, inputs.sparse, inputs.positions) == ({}, {}, None)

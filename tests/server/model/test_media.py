"""What images give to the text's part of a model, laid over a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from server.model.media import MediaError, Overlay, _Rows, _seen
from server.model.prompt_media import PromptMedia, Seen
from server.model.step import SequenceChunk

PROMPT = [1, 9, 9, 2]


def rows(first: int, num_cached: int, num_tokens: int, seen: Seen) -> _Rows:
    media = PromptMedia(PROMPT, {}, seen=seen)
    return _Rows(first, SequenceChunk([0] * num_tokens, num_cached, [], media=media), seen)


def lay(overlay: Overlay, num_tokens: int, **more: Any) -> dict[str, Any]:
    places = torch.arange(num_tokens)[None]
    return overlay.lay({"inputs_embeds": torch.zeros(1, num_tokens, 2), "position_ids": places, **more})


def test_each_piece_of_a_prompt_gets_its_own_part() -> None:
    seen = Seen({"inputs_embeds": torch.arange(8.0).view(4, 2)}, {}, None)
    laid = lay(Overlay([rows(1, 2, 2, seen)]), 4)
    assert laid["inputs_embeds"][0].tolist() == [[0, 0], [4, 5], [6, 7], [0, 0]]
    assert laid["position_ids"].tolist() == [[0, 1, 2, 3]]


def test_what_the_model_gives_to_no_text_is_zero_for_text() -> None:
    seen = Seen({"types": torch.tensor([0, 1, 1, 0])}, {}, None)
    assert lay(Overlay([rows(2, 1, 2, seen)]), 5)["types"].tolist() == [[0, 0, 1, 1, 0]]


def test_tokens_after_the_prompt_go_on_from_its_last_position() -> None:
    """Two by two pieces of an image lie at positions 1 and 2 of three axes; the text behind it goes on at 3."""
    positions = torch.tensor([[0, 1, 1, 2], [0, 1, 1, 2], [0, 1, 2, 2]])
    places = torch.tensor([[3, 4, 5, 7]])
    laid = lay(Overlay([rows(0, 3, 3, Seen({}, {}, positions))]), 4, position_ids=places)
    assert laid["position_ids"].shape == (3, 1, 4)
    # Of the last token of the prompt, of two that follow it, and of another sequence.
    assert laid["position_ids"][:, 0, 0].tolist() == [2, 2, 2]
    assert laid["position_ids"][0, 0, 1:].tolist() == [3, 4, 7]


def test_rows_of_masked_tokens_are_those_of_the_piece() -> None:
    mask, levels = (
        torch.tensor([False, True, True, False]),
        [torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]])],
    )
    seen = Seen({"visual_pos_masks": mask}, {"deepstack_visual_embeds": levels}, None)
    laid = lay(Overlay([rows(0, 2, 2, seen), rows(2, 0, 2, seen)]), 4)
    assert laid["visual_pos_masks"].tolist() == [[True, False, False, True]]
    assert [level.flatten().tolist() for level in laid["deepstack_visual_embeds"]] == [[2, 1], [4, 3]]


@pytest.mark.parametrize("value", [torch.zeros(3, 4), [torch.zeros(1, 4)], {"a": torch.zeros(1, 4)}], ids=type)
def test_what_cannot_be_laid_over_a_step_is_refused_by_name(value: Any) -> None:
    with pytest.raises(MediaError, match="a strange that is not of single tokens"):
        _seen({"inputs_embeds": torch.zeros(1, 4, 2), "strange": value}, 4)


def test_flags_and_the_steps_own_affairs_are_left_alone() -> None:
    seen = _seen({"attention_mask": {"full": None}, "cache": object(), "return_dict": True, "use_cache": False}, 4)
    assert (seen.of_tokens, seen.sparse, seen.positions) == ({}, {}, None)

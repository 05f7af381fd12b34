"""Memory of images, as a part of what requests hold."""

from __future__ import annotations

import pytest
import torch

from server.engine.image_memory import PROCESSING_FACTOR, ImageMemory
from server.engine.interface import RequestMemory, RequestMemoryError, RequestRefusedError
from server.model.prompt_media import PromptMedia, TextInputs


def make_media(num_bytes: int) -> PromptMedia:
    return PromptMedia([1], {"pixel_values": torch.zeros(num_bytes, dtype=torch.uint8), "sizes": [1]})


def test_images_take_the_memory_to_process_them_while_they_are_decoded() -> None:
    memory = RequestMemory()
    with ImageMemory(memory).taken(10):
        assert (memory.held_bytes, memory.unused_bytes) == (10 * PROCESSING_FACTOR, 0)
    assert memory.held_bytes == 0


def test_images_that_can_never_be_held_are_refused() -> None:
    images = ImageMemory(RequestMemory(lambda: 10 * PROCESSING_FACTOR))
    with pytest.raises(RequestRefusedError, match="The images may take 33 B of memory"), images.taken(11):
        pass


def test_images_are_refused_if_others_keep_the_memory() -> None:
    images = ImageMemory(RequestMemory(lambda: 10 * PROCESSING_FACTOR, wait_seconds=0.0))
    with images.taken(6), pytest.raises(RequestMemoryError, match="try again later"), images.taken(5):
        pass


def test_processed_images_count_until_the_model_has_encoded_them() -> None:
    memory, media = RequestMemory(), make_media(8)
    images = ImageMemory(memory)
    with images.taken(4) as reservation:
        images.keep(media, reservation)
    assert memory.held_bytes == 8
    media.keep(TextInputs({}, {}, None))
    assert memory.held_bytes == 0
    assert not media.inputs


def test_dropped_images_return_their_bytes() -> None:
    memory, media = RequestMemory(), make_media(8)
    images = ImageMemory(memory)
    with images.taken(4) as reservation:
        images.keep(media, reservation)
    del media
    assert memory.held_bytes == 0

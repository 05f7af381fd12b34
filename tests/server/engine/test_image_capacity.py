"""Limit of the memory that the images of all requests take together."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from server.engine.image_capacity import PROCESSING_FACTOR, ImageCapacity
from server.engine.interface import QueueFullError
from server.model.multimodal.prompt_media import PromptMedia, TextInputs

REFUSAL = "the images of other requests take all memory for images; try again later"


def make_media(num_bytes: int) -> PromptMedia:
    return PromptMedia([1], {"pixel_values": torch.zeros(num_bytes, dtype=torch.uint8), "sizes": [1]})


def test_a_request_is_refused_if_enough_others_wait() -> None:
    capacity = ImageCapacity(10, max_waiting=0)
    with capacity.taken(6), pytest.raises(QueueFullError, match=REFUSAL), capacity.taken(5):
        pass
    with capacity.taken(5):
        assert capacity.num_taken == 5


def test_a_request_that_waits_too_long_is_refused() -> None:
    capacity = ImageCapacity(10, wait_seconds=0.0)
    with capacity.taken(10), pytest.raises(QueueFullError, match=REFUSAL), capacity.taken(1):
        pass


def test_a_waiting_request_gets_returned_bytes() -> None:
    capacity, is_taken, may_end = ImageCapacity(10, wait_seconds=60), threading.Event(), threading.Event()

    def take_first() -> None:
        with capacity.taken(10):
            is_taken.set()
            may_end.wait()

    def take_second() -> int:
        with capacity.taken(7):
            return capacity.num_taken

    with ThreadPoolExecutor(2) as pool:
        pool.submit(take_first)
        is_taken.wait()
        second = pool.submit(take_second)
        may_end.set()
        assert second.result() == 7


def test_images_larger_than_the_limit_are_processed_alone() -> None:
    capacity = ImageCapacity(10, max_waiting=0)
    with capacity.taken(11), pytest.raises(QueueFullError), capacity.taken(1):
        pass
    assert capacity.num_taken == 0


def test_processed_images_count_until_the_model_has_encoded_them() -> None:
    capacity, media = ImageCapacity(), make_media(8)
    capacity.keep(media)
    assert capacity.num_taken == 8
    media.keep(TextInputs({}, {}, None))
    assert capacity.num_taken == 0
    assert not media.inputs


def test_dropped_images_return_their_bytes() -> None:
    capacity, media = ImageCapacity(), make_media(8)
    capacity.keep(media)
    del media
    assert capacity.num_taken == 0


def test_images_that_need_more_memory_than_is_free_are_refused() -> None:
    asked: list[int] = []

    def make_free(num_bytes: int) -> bool:
        asked.append(num_bytes)
        return False

    capacity = ImageCapacity(make_free=make_free)
    with pytest.raises(QueueFullError, match="the images need more memory than is free"), capacity.taken(10):
        pass
    assert asked == [10 * PROCESSING_FACTOR]
    assert capacity.num_taken == 0

"""The memory that images of all requests take together is bounded."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from server.engine.image_room import PROCESSING_FACTOR, ImageRoom
from server.engine.request import QueueFullError
from server.model.prompt_media import PromptMedia, Seen

NO_ROOM = "the images of other requests take all the memory that images may: try again later"


def make_media(num_bytes: int) -> PromptMedia:
    return PromptMedia([1], {"pixel_values": torch.zeros(num_bytes, dtype=torch.uint8), "sizes": [1]})


def test_who_finds_no_room_is_refused_where_others_wait() -> None:
    room = ImageRoom(10, max_waiting=0)
    with room.taken(6), pytest.raises(QueueFullError, match=NO_ROOM), room.taken(5):
        pass
    with room.taken(5):
        assert room.num_taken == 5


def test_who_waits_too_long_is_refused() -> None:
    room = ImageRoom(10, wait_seconds=0.0)
    with room.taken(10), pytest.raises(QueueFullError, match=NO_ROOM), room.taken(1):
        pass


def test_who_waits_gets_what_is_given_back() -> None:
    room, is_taken, may_end = ImageRoom(10, wait_seconds=60), threading.Event(), threading.Event()

    def take_first() -> None:
        with room.taken(10):
            is_taken.set()
            may_end.wait()

    def take_second() -> int:
        with room.taken(7):
            return room.num_taken

    with ThreadPoolExecutor(2) as pool:
        pool.submit(take_first)
        is_taken.wait()
        second = pool.submit(take_second)
        may_end.set()
        assert second.result() == 7


def test_images_that_are_more_than_all_the_room_come_alone() -> None:
    room = ImageRoom(10, max_waiting=0)
    with room.taken(11), pytest.raises(QueueFullError), room.taken(1):
        pass
    assert room.num_taken == 0


def test_processed_images_take_room_until_the_model_has_seen_them() -> None:
    room, media = ImageRoom(), make_media(8)
    room.keep(media)
    assert room.num_taken == 8
    media.keep(Seen({}, {}, None))
    assert room.num_taken == 0
    assert not media.inputs


def test_processed_images_that_nobody_wants_any_more_give_their_room_back() -> None:
    room, media = ImageRoom(), make_media(8)
    room.keep(media)
    del media
    assert room.num_taken == 0


def test_images_that_need_more_memory_than_is_left_are_refused() -> None:
    asked: list[int] = []

    def make_free(num_bytes: int) -> bool:
        asked.append(num_bytes)
        return False

    room = ImageRoom(make_free=make_free)
    with pytest.raises(QueueFullError, match="the images need more memory than is left"), room.taken(10):
        pass
    assert asked == [10 * PROCESSING_FACTOR]
    assert room.num_taken == 0

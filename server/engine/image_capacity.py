"""Limit of the memory that the images of all requests take together."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.engine.interface import QueueFullError
from server.heap import shared_trimmer
from server.model.multimodal.image_decoding import MAX_PIXELS_TOGETHER, PIXEL_BYTES
from server.model.multimodal.prompt_media import PromptMedia

MAX_BYTES = MAX_PIXELS_TOGETHER * PIXEL_BYTES  # the images of one request always fit
MAX_WAITING = 2  # requests; each blocks a thread that others need for their prompts
WAIT_SECONDS = 10.0
PROCESSING_FACTOR = 3  # memory of processor and vision towers, as a multiple of the decoded images; docs/log.md
NO_MEMORY = "the images need more memory than is free; send smaller ones, or try again later"


class ImageCapacity:
    """Limits the bytes of decoded images, and of processed images until the model has encoded them. Thread-safe.

    Args:
        num_bytes: limit for all images together.
        max_waiting: requests that may wait for others to return their bytes.
        wait_seconds: longest wait of a request.
        make_free: frees so many bytes of memory if it can, and returns whether they are free.
    """

    def __init__(
        self,
        num_bytes: int = MAX_BYTES,
        max_waiting: int = MAX_WAITING,
        wait_seconds: float = WAIT_SECONDS,
        make_free: Callable[[int], bool] | None = None,
    ):
        self._size, self._num_taken = num_bytes, 0
        self._max_waiting, self._wait_seconds = max_waiting, wait_seconds
        self._num_waiting = 0
        self._make_free = make_free
        self._changed = threading.Condition()  # guards the numbers

    @property
    def num_taken(self) -> int:
        """Bytes taken now."""
        return self._num_taken

    @contextmanager
    def taken(self, num_bytes: int) -> Iterator[None]:
        """Take bytes for the images of one request while they are decoded and processed; may block.

        Raises:
            QueueFullError: the bytes do not become free soon, or enough others wait for them already.
        """
        self._take(num_bytes)
        try:
            if self._make_free is not None and not self._make_free(PROCESSING_FACTOR * num_bytes):
                raise QueueFullError(NO_MEMORY)
            yield
        finally:
            self._give_back(num_bytes)
            shared_trimmer().soon()

    def keep(self, media: PromptMedia, decoded_bytes: int = 0) -> None:
        """Count processed images until the model has encoded them, or they are dropped.

        Args:
            decoded_bytes: size of the decoded images; the model's memory to encode them is in proportion.
        """
        num_bytes = max(media.num_input_bytes, decoded_bytes)
        with self._changed:
            self._num_taken += num_bytes
        media.on_embedded = weakref.finalize(media, self._give_back, num_bytes)

    def _take(self, num_bytes: int) -> None:
        def fits() -> bool:
            return self._num_taken == 0 or self._num_taken + num_bytes <= self._size

        with self._changed:
            if not fits():
                if self._num_waiting >= self._max_waiting:
                    raise _refusal()
                self._num_waiting += 1
                try:
                    if not self._changed.wait_for(fits, self._wait_seconds):
                        raise _refusal()
                finally:
                    self._num_waiting -= 1
            self._num_taken += num_bytes

    def _give_back(self, num_bytes: int) -> None:
        with self._changed:
            self._num_taken -= num_bytes
            self._changed.notify_all()


def _refusal() -> QueueFullError:
    return QueueFullError("the images of other requests take all memory for images; try again later")

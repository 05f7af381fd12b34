"""The memory that the images of requests take while they are decoded, processed and encoded."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from server.engine.interface import RequestMemory, Reservation
from server.model.prompt_media import PromptMedia

# Memory of processor and vision towers, as a multiple of the decoded images; measured in
# benchmarks/results/2026-11-26-epyc-zen5/one-budget-and-native-kernels-measured-together.json.
PROCESSING_FACTOR = 3


class ImageMemory:
    """Counts the bytes of images as memory of requests. Thread-safe.

    Args:
        memory: the memory that all requests hold.
    """

    def __init__(self, memory: RequestMemory):
        self._memory = memory

    @contextmanager
    def taken(self, num_bytes: int) -> Iterator[Reservation]:
        """Take the memory to decode and process images of one request; may block.

        Args:
            num_bytes: size of the decoded images.

        Raises:
            RequestRefusedError: the server can never hold such images.
            RequestMemoryError: other requests hold the memory.
        """
        with self._memory.reserve() as reservation:
            reservation.take_blocking(PROCESSING_FACTOR * num_bytes, "The images", "messages")
            reservation.use_taken()
            yield reservation

    def keep(self, media: PromptMedia, reservation: Reservation, decoded_bytes: int = 0) -> None:
        """Count processed images until the model has encoded them, or they are dropped.

        Args:
            reservation: memory taken for them, of which the rest is released.
            decoded_bytes: size of the decoded images; the model's memory to encode them is in proportion.
        """
        kept = reservation.split(max(media.num_input_bytes, decoded_bytes))
        media.on_embedded = weakref.finalize(media, kept.drop)

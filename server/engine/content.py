"""Numbers that tell prompts with different images apart, so that one's blocks are never taken for another's."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import groupby


def content_ids(token_ids: Sequence[int], placeholder: int, images: Sequence[bytes]) -> tuple[int, ...]:
    """A prompt with a negative number, that its image gives, in the place of each token that stands for it.

    Where an image's tokens do not lie together, all images give one number: it is not plain which is where.
    """
    runs = [(is_image, list(run)) for is_image, run in groupby(token_ids, key=lambda token: token == placeholder)]
    numbers = [_number([image]) for image in images]
    if sum(is_image for is_image, _ in runs) != len(images):
        numbers = [_number(images)] * len(runs)
    following = iter(numbers)
    content: list[int] = []
    for is_image, run in runs:
        content += [next(following)] * len(run) if is_image else run
    return tuple(content)


def _number(images: Sequence[bytes]) -> int:
    digest = blake2b(digest_size=8)
    for image in images:
        digest.update(blake2b(image).digest())
    return -1 - (int.from_bytes(digest.digest()) >> 1)

"""Token ids for the prefix cache, in which image hashes replace placeholders, so that other images never match."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import groupby


def prefix_cache_ids(token_ids: Sequence[int], placeholder: int, images: Sequence[bytes]) -> tuple[int, ...]:
    """Return a prompt in which the placeholder tokens of each image are replaced by a negative hash of the image.

    If the tokens of an image are not contiguous, all placeholders get one hash of all images.
    """
    runs = [(is_image, list(run)) for is_image, run in groupby(token_ids, key=lambda token: token == placeholder)]
    hashes = [_hash([image]) for image in images]
    if sum(is_image for is_image, _ in runs) != len(images):
        hashes = [_hash(images)] * len(runs)
    following = iter(hashes)
    content: list[int] = []
    for is_image, run in runs:
        content += [next(following)] * len(run) if is_image else run
    return tuple(content)


def _hash(images: Sequence[bytes]) -> int:
    digest = blake2b(digest_size=8)
    for image in images:
        digest.update(blake2b(image).digest())
    return -1 - (int.from_bytes(digest.digest()) >> 1)

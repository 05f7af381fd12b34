"""Least frequently used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from expert_store.keys import ExpertKey
from expert_store.policies.base import TouchesEach


class _Bucket:
    """The keys of one count of uses, and the neighbours of the bucket in a ring, rarest first, around a sentinel."""

    __slots__ = ("count", "following", "keys", "previous")

    def __init__(self, count: int) -> None:
        self.count = count
        self.keys: OrderedDict[ExpertKey, None] = OrderedDict()
        self.previous = self.following = self


class LfuPolicy(TouchesEach):
    """Evicts the key with the fewest uses since it became resident; among equals, the least recently used.

    Buckets of equal counts in a ring, each in order of recency: every operation takes constant time. Ketan Shah,
    Anirban Mitra, Dhruv Matani, "An O(1) algorithm for implementing the LFU cache eviction scheme", 2010.
    """

    def __init__(self, num_slots: int) -> None:
        del num_slots  # the order does not depend on it
        self._ring = _Bucket(0)
        self._bucket_of: dict[ExpertKey, _Bucket] = {}

    def insert(self, key: ExpertKey) -> None:
        self._move(key, self._ring)

    def touch(self, key: ExpertKey) -> None:
        old = self._bucket_of[key]
        self._move(key, old)
        self._take_out(key, old)

    def remove(self, key: ExpertKey) -> None:
        self._take_out(key, self._bucket_of.pop(key))

    def victim(self, incoming: ExpertKey, is_evictable: Callable[[ExpertKey], bool]) -> ExpertKey | None:
        del incoming
        return next((key for bucket in self._buckets() for key in bucket.keys if is_evictable(key)), None)

    def resize(self, num_slots: int) -> None:
        """Do nothing, as the order does not depend on the number of slots."""

    def _buckets(self) -> Iterator[_Bucket]:
        bucket = self._ring.following
        while bucket is not self._ring:
            yield bucket
            bucket = bucket.following

    def _move(self, key: ExpertKey, behind: _Bucket) -> None:
        """Put a key into the bucket whose count is one more than that of ``behind``."""
        bucket = behind.following
        if bucket.count != behind.count + 1:
            bucket = _Bucket(behind.count + 1)
            bucket.previous, bucket.following = behind, behind.following
            behind.following.previous = bucket
            behind.following = bucket
        bucket.keys[key] = None
        self._bucket_of[key] = bucket

    @staticmethod
    def _take_out(key: ExpertKey, bucket: _Bucket) -> None:
        del bucket.keys[key]
        if not bucket.keys:
            bucket.previous.following = bucket.following
            bucket.following.previous = bucket.previous

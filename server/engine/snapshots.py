"""Where the states of recurrent layers are kept as they were after some prefix. Torch-free.

Blocks of keys and values can be shared by whoever begins alike, since nobody changes them. A state is changed by every
token, so copies of it are kept where a step ends with a full block, and a sequence can go on from there.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable


class SnapshotPool:
    """Places for copies of states, each known by the hash of all tokens before it; those unused longest go first.

    Args:
        places: numbers that nothing else has, as the model's states are numbered.
    """

    def __init__(self, places: Iterable[int]):
        self._free = list(places)[::-1]
        self._num_places = len(self._free)
        self._kept: OrderedDict[bytes, int] = OrderedDict()  # longest unused first
        self._readers: Counter[int] = Counter()  # sequences that go on from a place in their next step

    def has(self, content: bytes) -> bool:
        return content in self._kept

    def resume(self, content: bytes) -> int:
        """The place of a snapshot that a sequence is about to go on from; it stays until ``done``."""
        self._kept.move_to_end(content)
        place = self._kept[content]
        self._readers[place] += 1
        return place

    def done(self, place: int) -> None:
        """A sequence has gone on from there, or will not."""
        self._readers[place] -= 1

    def take(self) -> int | None:
        """A place for a new snapshot; None if all are about to be read."""
        if self._free:
            return self._free.pop()
        unread = next((content for content, place in self._kept.items() if not self._readers[place]), None)
        return None if unread is None else self._kept.pop(unread)

    def give_back(self, place: int) -> None:
        """Nothing came to a place that was taken."""
        self._free.append(place)

    def keep(self, content: bytes, place: int) -> None:
        """A snapshot is in a place that was taken."""
        if content in self._kept:
            self.give_back(place)
        else:
            self._kept[content] = place

    def drop(self, content: bytes) -> None:
        """Forget a snapshot that a later one of the same sequence stands for, unless somebody is about to read it."""
        place = self._kept.get(content)
        if place is not None and not self._readers[place]:
            self.give_back(self._kept.pop(content))

    def check_integrity(self, taken: Iterable[int], read: Iterable[int]) -> None:
        """Raise AssertionError unless these are the places in use."""
        places = [*self._free, *self._kept.values(), *taken]
        if len(set(places)) != len(places) or len(places) != self._num_places:
            raise AssertionError(f"{len(places)} places of snapshots are accounted for, not {self._num_places}")
        if +self._readers != Counter(read):
            raise AssertionError("snapshots are read by others than who says so")

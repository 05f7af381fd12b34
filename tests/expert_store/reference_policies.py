"""Slow and obvious replacement policies: lists, walked from the least wanted key on."""

from __future__ import annotations

from collections.abc import Callable
from math import log2

from expert_store import ExpertKey
from expert_store.policies import ArcPolicy, LfruPolicy, LfuPolicy, LruPolicy, SlruPolicy
from expert_store.policies.lfru import BUCKETS_PER_OCTAVE, GHOSTS_PER_SLOT, HALF_LIFE
from expert_store.policies.slru import PROTECTED_SHARE


class Reference:
    """Everything is looked for by walking through lists, least wanted first."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots

    def order(self, incoming: ExpertKey) -> list[ExpertKey]:
        raise NotImplementedError

    def victim(self, incoming: ExpertKey, is_evictable: Callable[[ExpertKey], bool]) -> ExpertKey | None:
        return next(filter(is_evictable, self.order(incoming)), None)

    def resize(self, num_slots: int) -> None:
        self.num_slots = num_slots


class ReferenceLru(Reference):
    def __init__(self, num_slots: int) -> None:
        super().__init__(num_slots)
        self.keys: list[ExpertKey] = []

    def insert(self, key: ExpertKey) -> None:
        self.keys.append(key)

    def touch(self, key: ExpertKey) -> None:
        self.remove(key)
        self.insert(key)

    def remove(self, key: ExpertKey) -> None:
        self.keys.remove(key)

    def order(self, incoming: ExpertKey) -> list[ExpertKey]:
        return self.keys


class ReferenceLfu(ReferenceLru):
    """Counts, ties broken by recency."""

    def __init__(self, num_slots: int) -> None:
        super().__init__(num_slots)
        self.counts: dict[ExpertKey, int] = {}

    def insert(self, key: ExpertKey) -> None:
        super().insert(key)
        self.counts[key] = 1

    def touch(self, key: ExpertKey) -> None:
        count = self.counts[key]
        super().touch(key)
        self.counts[key] = count + 1

    def order(self, incoming: ExpertKey) -> list[ExpertKey]:
        return sorted(self.keys, key=lambda key: self.counts[key])


class ReferenceSlru(Reference):
    def __init__(self, num_slots: int) -> None:
        super().__init__(num_slots)
        self.probation: list[ExpertKey] = []
        self.protected: list[ExpertKey] = []

    def insert(self, key: ExpertKey) -> None:
        self.probation.append(key)

    def touch(self, key: ExpertKey) -> None:
        self.remove(key)
        self.protected.append(key)
        self.resize(self.num_slots)

    def remove(self, key: ExpertKey) -> None:
        (self.probation if key in self.probation else self.protected).remove(key)

    def order(self, incoming: ExpertKey) -> list[ExpertKey]:
        return self.probation + self.protected

    def resize(self, num_slots: int) -> None:
        self.num_slots = num_slots
        excess = max(0, len(self.protected) - int(PROTECTED_SHARE * num_slots))
        self.probation += self.protected[:excess]
        self.protected = self.protected[excess:]


class ReferenceArc(Reference):
    """The names of the paper: T1, T2, B1, B2, p."""

    def __init__(self, num_slots: int) -> None:
        super().__init__(num_slots)
        self.t1: list[ExpertKey] = []
        self.t2: list[ExpertKey] = []
        self.b1: list[ExpertKey] = []
        self.b2: list[ExpertKey] = []
        self.p = 0.0

    def adapted(self, key: ExpertKey) -> float:
        if key in self.b1:
            return min(self.num_slots, self.p + max(1, len(self.b2) / len(self.b1)))
        if key in self.b2:
            return max(0, self.p - max(1, len(self.b1) / len(self.b2)))
        return self.p

    def insert(self, key: ExpertKey) -> None:
        self.p = self.adapted(key)
        was_known = key in self.b1 + self.b2
        self.b1 = [ghost for ghost in self.b1 if ghost != key]
        self.b2 = [ghost for ghost in self.b2 if ghost != key]
        (self.t2 if was_known else self.t1).append(key)
        self.forget()

    def touch(self, key: ExpertKey) -> None:
        (self.t1 if key in self.t1 else self.t2).remove(key)
        self.t2.append(key)

    def remove(self, key: ExpertKey) -> None:
        residents, ghosts = (self.t1, self.b1) if key in self.t1 else (self.t2, self.b2)
        residents.remove(key)
        ghosts.append(key)
        self.forget()

    def order(self, incoming: ExpertKey) -> list[ExpertKey]:
        p = self.adapted(incoming)
        if len(self.t1) > p or (len(self.t1) == p and incoming in self.b2):
            return self.t1 + self.t2
        return self.t2 + self.t1

    def resize(self, num_slots: int) -> None:
        super().resize(num_slots)
        self.p = min(self.p, num_slots)
        self.forget()

    def forget(self) -> None:
        while self.b1 and len(self.t1) + len(self.b1) > self.num_slots:
            del self.b1[0]
        while self.b2 and len(self.t1 + self.t2 + self.b1 + self.b2) > 2 * self.num_slots:
            del self.b2[0]


class ReferenceLfru(ReferenceLru):
    """Keeps the time of every request in half-lives and adds them up anew each time."""

    def __init__(self, num_slots: int) -> None:
        super().__init__(num_slots)
        self.now = 0.0
        self.times: dict[ExpertKey, list[float]] = {}
        self.ghosts: list[ExpertKey] = []

    def insert(self, key: ExpertKey) -> None:
        super().insert(key)
        if key in self.ghosts:
            self.ghosts.remove(key)
        else:
            self.times[key] = []
        self.note(key)

    def touch(self, key: ExpertKey) -> None:
        super().remove(key)
        super().insert(key)
        self.note(key)

    def note(self, key: ExpertKey) -> None:
        self.now += 1 / (HALF_LIFE * max(self.num_slots, 1))
        self.times[key].append(self.now)

    def remove(self, key: ExpertKey) -> None:
        super().remove(key)
        self.ghosts.append(key)
        self.resize(self.num_slots)

    def order(self, incoming: ExpertKey) -> list[ExpertKey]:
        return sorted(self.keys, key=self.bucket)

    def bucket(self, key: ExpertKey) -> int:
        return int(BUCKETS_PER_OCTAVE * log2(sum(2.0**time for time in self.times[key])) + 1e-9)

    def resize(self, num_slots: int) -> None:
        super().resize(num_slots)
        while len(self.ghosts) > GHOSTS_PER_SLOT * num_slots:
            del self.ghosts[0]


REFERENCES: dict[type, type] = {
    LruPolicy: ReferenceLru,
    LfuPolicy: ReferenceLfu,
    SlruPolicy: ReferenceSlru,
    ArcPolicy: ReferenceArc,
    LfruPolicy: ReferenceLfru,
}

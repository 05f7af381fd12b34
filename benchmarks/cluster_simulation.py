"""Simulated replicas behind each way of choosing one: ``python -m benchmarks.cluster_simulation``.

Requests of the bundled model's eleven domains replay its recorded routing: each has the system prompt of its domain,
and every second one continues an earlier conversation. A replica keeps a share of the experts of each layer, of which
the least recently used leave, and each of its steps computes a token of up to four requests. The seconds of a step, a
miss and a prompt's token are given, not measured. Several ingresses get the requests at random, and tell each other
nothing: each knows what it has sent, what replicas tell at the end of its own requests, and their reports, which come
as often as to a real ingress. Prints hit ratios of experts and of prompts, waiting time and time per token by way and
number of replicas and of ingresses, and what a choice takes. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count, product
from pathlib import Path

import numpy as np

from expert_store.routing_log.log import read_routing_log
from server.cluster.frontend import REPORT_SECONDS, REPORTS_PER_SECOND
from server.cluster.scoring import Costs, Fleet, ReplicaState
from server.cluster.signatures import RoutedRequest, Signature, SignatureMemory

TRACES = Path(__file__).resolve().parent.parent / "server" / "demo" / "traces"
MIXED = {"chat", "mixed"}  # logs of no single domain
BLOCK_TOKENS, SYSTEM_BLOCKS, TURN_BLOCKS, COMPLETION = 16, 16, 4, 64
CACHE_BLOCKS = 2000  # of a replica's prefix cache
LANES = 4  # requests that a replica runs at a time
TOKEN_SECONDS, MISS_SECONDS, PROMPT_SECONDS = 0.02, 0.002, 0.0005  # of a step, a miss, and a token of a prompt
REQUEST_SECONDS = 0.2  # that a request is taken to add to the next one at its replica
LOAD = 0.25  # of the lanes, if there were neither misses nor prompts

Step = list[tuple[int, ...]]  # experts by layer


@dataclass(frozen=True)
class _Domain:
    number: int
    steps: list[Step]


@dataclass
class _Job:
    arrival: float
    request: RoutedRequest
    steps: list[Step]
    num_done: int = 0  # of its steps
    ingress: int = 0  # that chose its replica
    first: float = 0.0  # when its prompt is computed


@dataclass
class _Replica:
    """A server: each of its steps computes a token of each running request, and prompts that begin."""

    num_layers: int
    num_experts: int
    slots: int  # of a layer
    running: list[_Job] = field(default_factory=list)
    waiting: deque[_Job] = field(default_factory=deque)
    blocks: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    hits: int = 0
    misses: int = 0
    cached_tokens: int = 0  # of prompts
    prompt_tokens: int = 0

    def __post_init__(self) -> None:
        self.layers = [OrderedDict[int, None]() for _ in range(self.num_layers)]

    def step(self, now: float) -> tuple[float, list[_Job]]:
        """Run a step; return when it ends, and the requests that it ends."""
        new_tokens, begun = 0, []
        while self.waiting and len(self.running) < LANES:
            job = self.waiting.popleft()
            new_tokens += self._read_prompt(job.request)
            begun.append(job)
            self.running.append(job)
        misses = sum(
            self._use(layer, set().union(*(job.steps[job.num_done][number] for job in self.running)))
            for number, layer in enumerate(self.layers)
        )
        self.misses += misses
        first = now + new_tokens * PROMPT_SECONDS
        for job in begun:
            job.first = first
        for job in self.running:
            job.num_done += 1
        ended = [job for job in self.running if job.num_done == len(job.steps)]
        self.running = [job for job in self.running if job.num_done < len(job.steps)]
        return first + TOKEN_SECONDS + misses * MISS_SECONDS, ended

    def state(self, *, with_blocks: bool = True) -> ReplicaState:
        resident = np.zeros((self.num_layers, self.num_experts), dtype=np.bool_)
        for number, layer in enumerate(self.layers):
            resident[number, list(layer)] = True
        blocks = frozenset(self.blocks) if with_blocks else frozenset[bytes]()
        return ReplicaState(self.num_requests, blocks, frozenset(), resident)

    @property
    def num_requests(self) -> int:
        return len(self.running) + len(self.waiting)

    def _read_prompt(self, request: RoutedRequest) -> int:
        """Return how many tokens are not in the prefix cache, and put them there."""
        known = 0
        while known < len(request.blocks) and request.blocks[known] in self.blocks:
            known += 1
        for block in request.blocks:
            self.blocks[block] = None
            self.blocks.move_to_end(block)
        while len(self.blocks) > CACHE_BLOCKS:
            self.blocks.popitem(last=False)
        self.cached_tokens += known * BLOCK_TOKENS
        self.prompt_tokens += request.num_tokens
        return request.num_tokens - known * BLOCK_TOKENS

    def _use(self, layer: OrderedDict[int, None], experts: set[int]) -> int:
        """Return how many experts of a step are absent, and make all of them the most recently used."""
        absent = experts - layer.keys()
        self.hits += len(experts) - len(absent)
        for expert in experts:
            layer[expert] = None
            layer.move_to_end(expert)
        while len(layer) > self.slots:
            layer.popitem(last=False)
        return len(absent)


def _read_domains() -> list[_Domain]:
    domains: list[_Domain] = []
    for path in sorted(TRACES.glob("*.gz")):
        if path.name.partition(".")[0] in MIXED:
            continue
        log = read_routing_log(path)
        leases = [lease.experts for lease in log.leases if lease.phase == "decode"]
        width = len(log.header.layers)
        domains.append(_Domain(len(domains), [leases[at : at + width] for at in range(0, len(leases), width)]))
    return domains


def _make_jobs(domains: Sequence[_Domain], num_jobs: int, rate: float, rng: random.Random) -> list[_Job]:
    jobs, now, sessions, numbers = list[_Job](), 0.0, list[tuple[_Domain, tuple[bytes, ...]]](), count()
    for _ in range(num_jobs):
        now += rng.expovariate(rate)
        if sessions and rng.random() < 0.5:
            domain, before = sessions.pop(rng.randrange(len(sessions)))
        else:
            domain = rng.choice(domains)
            before = tuple(b"s%d.%d" % (domain.number, each) for each in range(SYSTEM_BLOCKS))
        blocks = before + tuple(b"%d" % next(numbers) for _ in range(TURN_BLOCKS))
        sessions.append((domain, blocks))
        start = rng.randrange(len(domain.steps) - COMPLETION)
        request = RoutedRequest(len(blocks) * BLOCK_TOKENS, blocks)
        jobs.append(_Job(now, request, domain.steps[start : start + COMPLETION]))
    return jobs


def _signature(job: _Job, num_layers: int, num_experts: int) -> Signature:
    counts = np.zeros((num_layers, num_experts), dtype=np.float32)
    for step in job.steps:
        for layer, experts in enumerate(step):
            counts[layer, list(experts)] += 1
    return Signature.from_counts(counts)


class _Choice:
    """A way of choosing a replica."""

    def __init__(
        self, way: str, replicas: Sequence[_Replica], experts_of_token: int, rng: random.Random, num_ingresses: int
    ):
        self._way, self._replicas, self._rng = way, replicas, rng
        self._turns = count(rng.randrange(len(replicas)))
        self.seconds = 0.0
        costs = Costs(PROMPT_SECONDS, 0.0, MISS_SECONDS * experts_of_token, REQUEST_SECONDS, COMPLETION)
        self._fleet = Fleet(costs, BLOCK_TOKENS, rng, num_senders=num_ingresses)
        self._memory = SignatureMemory()
        for at, replica in enumerate(replicas):
            self._fleet.update(str(at), replica.state())

    def choose(self, request: RoutedRequest) -> int:
        """Return the number of a replica."""
        begin = time.perf_counter()
        if self._way == "round robin":
            chosen = next(self._turns) % len(self._replicas)
        elif self._way == "power of two":
            two = self._rng.sample(range(len(self._replicas)), 2)
            chosen = min(two, key=lambda at: self._replicas[at].num_requests)
        else:
            asked = RoutedRequest(request.num_tokens) if self._way == "signature" else request
            signature = None if self._way == "prefix" else self._memory.find(request)
            chosen = int(self._fleet.order(asked, signature)[0])
            self._fleet.sent(str(chosen), asked)
        self.seconds += time.perf_counter() - begin
        return chosen

    def end(self, job: _Job, at: int) -> None:
        """Take the signature of a request that has ended, and what its replica holds now."""
        if self._way in {"prefix", "signature", "both"}:
            replica = self._replicas[at]
            self._memory.remember(job.request, _signature(job, replica.num_layers, replica.num_experts))
            self._fleet.refresh(str(at), replica.state(with_blocks=False))

    def take_reports(self, states: Sequence[ReplicaState]) -> None:
        """Take what all replicas tell of themselves."""
        for at, state in enumerate(states):
            self._fleet.update(str(at), state)


def simulate(
    way: str, num_replicas: int, jobs: Sequence[_Job], share: float, *, seed: int, num_ingresses: int = 1
) -> dict[str, float]:
    """Run all jobs on some replicas, and return means over the jobs.

    Args:
        way: ``round robin``, ``power of two``, ``prefix``, ``signature``, or ``both``.
        share: of the experts of a layer that a replica keeps.
        num_ingresses: each chooses for a part of the requests, and knows of the others' only what replicas report.
    """
    num_layers = len(jobs[0].steps[0])
    num_experts = 1 + max(max(experts) for job in jobs for step in job.steps for experts in step)
    replicas = [_Replica(num_layers, num_experts, int(share * num_experts)) for _ in range(num_replicas)]
    experts_of_token = sum(map(len, jobs[0].steps[0]))
    rng = random.Random(seed)  # noqa: S311  no secret
    choices = [_Choice(way, replicas, experts_of_token, rng, num_ingresses) for _ in range(num_ingresses)]
    arrivals = random.Random(seed)  # noqa: S311
    reported, report_seconds = 0.0, max(REPORT_SECONDS, num_replicas / REPORTS_PER_SECOND)
    steps: list[tuple[float, int]] = []  # when each busy replica begins its next step
    idle = dict.fromkeys(range(num_replicas), 0.0)  # the others, and when their last step ended
    waiting = decoding = 0.0
    for prepared in (*jobs, None):
        job = None if prepared is None else replace(prepared)
        now = math.inf if job is None else job.arrival
        while steps and steps[0][0] <= now:
            begin, at = heapq.heappop(steps)
            end, ended = replicas[at].step(begin)
            for each in ended:
                waiting += each.first - each.arrival
                decoding += end - each.first
                choices[each.ingress].end(each, at)
            if replicas[at].num_requests:
                heapq.heappush(steps, (end, at))
            else:
                idle[at] = end
        if way in {"prefix", "signature", "both"} and now < math.inf and now - reported >= report_seconds:
            reported, states = now, [replica.state() for replica in replicas]
            for choice in choices:
                choice.take_reports(states)
        if job is not None:
            job.ingress = arrivals.randrange(num_ingresses)
            chosen = choices[job.ingress].choose(job.request)
            replicas[chosen].waiting.append(job)
            if chosen in idle:
                heapq.heappush(steps, (max(job.arrival, idle.pop(chosen)), chosen))
    hits, misses = sum(each.hits for each in replicas), sum(each.misses for each in replicas)
    return {
        "hit_ratio": round(hits / (hits + misses), 4),
        "cached_prompt": round(
            sum(each.cached_tokens for each in replicas) / sum(each.prompt_tokens for each in replicas), 4
        ),
        "first_token_ms": round(1000 * waiting / len(jobs), 1),
        "token_ms": round(1000 * decoding / len(jobs) / COMPLETION, 2),
        "choice_us": round(1e6 * sum(choice.seconds for choice in choices) / len(jobs), 1),
    }


WAYS = ("round robin", "power of two", "prefix", "signature", "both")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", default="2,10,100", help="numbers of replicas")
    parser.add_argument("--share", type=float, default=0.5, help="of the experts that a replica keeps")
    parser.add_argument("--jobs", type=int, default=100, help="requests for each replica")
    parser.add_argument("--max-jobs", type=int, default=20_000, help="requests for all replicas together")
    parser.add_argument("--ways", default=",".join(WAYS), help="ways to compare")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ingresses", default="1", help="numbers of processes that choose, each for a part")
    arguments = parser.parse_args()
    domains = _read_domains()
    ways = arguments.ways.split(",")
    result: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    print("| replicas | ingresses | way | hit ratio | prompt cached | first token, ms | token, ms | choice, us |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for num_replicas in map(int, arguments.replicas.split(",")):
        num_jobs = min(arguments.max_jobs, max(500, arguments.jobs * num_replicas))
        rate = LOAD * num_replicas * LANES / (COMPLETION * TOKEN_SECONDS)
        jobs = _make_jobs(domains, num_jobs, rate, random.Random(arguments.seed))  # noqa: S311  no secret
        for num_ingresses, way in product(map(int, arguments.ingresses.split(",")), ways):
            row = simulate(way, num_replicas, jobs, arguments.share, seed=arguments.seed, num_ingresses=num_ingresses)
            figures = " | ".join(map(str, row.values()))
            print(f"| {num_replicas} | {num_ingresses} | {way} | {figures} |", flush=True)
            result.setdefault(str(num_replicas), {}).setdefault(str(num_ingresses), {})[way] = row
    print(json.dumps(result))


if __name__ == "__main__":
    main()

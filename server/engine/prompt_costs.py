"""The seconds that prompts take by chunks and as passes, estimated from what steps have taken so far. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

DECAY = 0.8  # weight of what was measured before, at each step
MIN_TOKENS = 32  # of prompts in a step that is measured
PASS_WAIT_SHARE = 0.7  # waits for each byte in passes over those in steps, until both were measured; with 64 tokens
MOST = 0.5
MIN_GAIN = 0.05  # a pass must be so much sooner, since its memory is taken from the experts


@dataclass(frozen=True)
class PromptRates:
    """Estimates what prompts take, by the rates of processor and disk.

    Only the part of reading for which compute waits counts. A pass reads the next layer's experts meanwhile.

    Args:
        token_seconds: compute, for each token.
        byte_seconds: compute of a step waits so long for each byte that the step is expected to read.
        pass_byte_seconds: the same of a pass.
        decode_seconds: of a step of sequences that decode; 0 if there was none.
        expected_bytes: returns the bytes of experts that a step with so many tokens is expected to read.
    """

    token_seconds: float
    byte_seconds: float
    pass_byte_seconds: float
    decode_seconds: float
    expected_bytes: Callable[[int], float]

    def step_seconds(self, num_tokens: int) -> float:
        """Return what one step takes."""
        return num_tokens * self.token_seconds + self.expected_bytes(num_tokens) * self.byte_seconds

    def pass_seconds(self, num_tokens: int) -> float:
        """Return what one pass takes, in which each expert is read once."""
        return num_tokens * self.token_seconds + self.expected_bytes(num_tokens) * self.pass_byte_seconds

    def num_joining(self, prompts: Sequence[int]) -> int:
        """Return how many prompts, from the first on, should share a pass for the least wait for first tokens.

        One more delays those before it by its own tokens, and it and those after it gain what it does not read alone:
        twice, since the decode steps of those before it would read at the same time.

        Args:
            prompts: the tokens of each, in order; at least one.
        """
        total = prompts[0]
        for index, num_tokens in enumerate(prompts[1:], 1):
            delay = self.pass_seconds(total + num_tokens) - self.pass_seconds(total)
            contention = self.expected_bytes(num_tokens) * self.pass_byte_seconds
            gain = self.pass_seconds(num_tokens) + contention - delay
            if index * delay > (len(prompts) - index) * gain:
                return index
            total += num_tokens
        return len(prompts)

    def prefers_pass(self, prompts: Sequence[int], step_tokens: int) -> bool:
        """Return whether first tokens come sooner by one pass of some prompts than by chunks, on average.

        Args:
            prompts: the tokens of each, in order.
            step_tokens: of a step by chunks.
        """
        ends = list(accumulate(prompts))
        full, rest = divmod(ends[-1], step_tokens)
        steps = [self.step_seconds(step_tokens)] * full + [self.step_seconds(rest)] * bool(rest)
        after = [0.0, *accumulate(steps)]
        by_chunks = sum(after[-(-end // step_tokens)] for end in ends)
        return len(prompts) * self.pass_seconds(ends[-1]) < (1 - MIN_GAIN) * by_chunks

    def prefers_step(self, num_tokens: int, num_left: int, num_delayed: int) -> bool:
        """Return whether a prompt should run in a step beside a running pass, instead of waiting for the next pass.

        Args:
            num_left: tokens that the running pass has still to compute.
            num_delayed: prompts of the running pass, each of which the step delays.
        """
        return num_delayed * self.step_seconds(num_tokens) < num_left * self.token_seconds


class PromptCosts:
    """Measures the rates of recent steps.

    Args:
        expected_bytes: see ``PromptRates``.
        missing_share: returns the part of the experts' bytes that is not in memory.
    """

    def __init__(self, expected_bytes: Callable[[int], float], missing_share: Callable[[], float]):
        self._expected_bytes, self._missing_share = expected_bytes, missing_share
        self._tokens = self._compute_seconds = 0.0
        self._bytes = self._stall_seconds = 0.0  # of steps by chunks
        self._pass_bytes = self._pass_stall_seconds = 0.0
        self._decode_seconds = 0.0

    @property
    def rates(self) -> PromptRates | None:
        """The rates of recent steps and passes; None before a prompt has run that was expected to read."""
        byte_seconds = self._stall_seconds / self._bytes if self._bytes else None
        pass_byte_seconds = self._pass_stall_seconds / self._pass_bytes if self._pass_bytes else None
        if byte_seconds is None:
            if pass_byte_seconds is None:
                return None
            byte_seconds = pass_byte_seconds / PASS_WAIT_SHARE
        elif pass_byte_seconds is None:
            pass_byte_seconds = byte_seconds * PASS_WAIT_SHARE
        token_seconds = self._compute_seconds / self._tokens
        return PromptRates(token_seconds, byte_seconds, pass_byte_seconds, self._decode_seconds, self._expected_bytes)

    @property
    def misses_most(self) -> bool:
        """True if a prompt has to read most of the experts that it uses, as after a start."""
        return self._missing_share() > MOST

    def note_decode(self, seconds: float) -> None:
        """Measure a step with one token of each sequence."""
        self._decode_seconds += (1 - DECAY) * (seconds - self._decode_seconds) if self._decode_seconds else seconds

    def note_chunks(self, num_tokens: int, seconds: float, stall_seconds: float) -> None:
        """Measure a step with chunks of prompts."""
        if num_tokens >= MIN_TOKENS:
            self._note_compute(num_tokens, seconds - stall_seconds)
            self._bytes = DECAY * self._bytes + self._expected_bytes(num_tokens)
            self._stall_seconds = DECAY * self._stall_seconds + stall_seconds

    def note_pass(self, num_tokens: int, seconds: float, stall_seconds: float) -> None:
        """Measure a finished pass."""
        self._note_compute(num_tokens, seconds - stall_seconds)
        self._pass_bytes = DECAY * self._pass_bytes + self._expected_bytes(num_tokens)
        self._pass_stall_seconds = DECAY * self._pass_stall_seconds + stall_seconds

    def _note_compute(self, num_tokens: int, seconds: float) -> None:
        self._tokens = DECAY * self._tokens + num_tokens
        self._compute_seconds = DECAY * self._compute_seconds + max(0.0, seconds)

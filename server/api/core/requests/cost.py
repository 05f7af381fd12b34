"""The memory that a request for text makes the server hold, estimated before it runs.

What a reply holds beyond the estimate is counted as it comes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from server.engine.interface import EVENT_BYTES, FREE_UNREAD, TEXT_BYTES, TokenEvent, logprobs_bytes

PROMPT_BYTES, PROMPT_TOKEN_BYTES = 4096, 64  # of a prompt, and of each of its tokens
CHOICE_BYTES, CHOICE_TOKEN_BYTES = 8192, 16  # of a sequence, and of each token of its prompt
NEW_TOKEN_BYTES = 64  # of a generated token: its id, and its text in a complete reply
FIRST_TOKENS = 1024  # of a choice whose length the request leaves open


@dataclass(frozen=True)
class ReplyForm:
    """The bytes that a dialect's complete reply holds for each token listed in logprobs."""

    logprob_bytes: int
    prompt_logprob_bytes: int = 0
    is_held_in_streams: bool = False  # the last event of a stream repeats them

    def held_bytes(self, event: TokenEvent) -> int:
        """Return the bytes that a reply holds of a generated token."""
        num_listed = sum(1 + len(each.top) for each in event.logprobs)
        return NEW_TOKEN_BYTES + len(event.text) + self.logprob_bytes * num_listed


# Measured with the vocabulary of Qwen3; JSON, or the objects that it is made of at the end.
COMPLETION_FORM = ReplyForm(48, 96)
CHAT_FORM = ReplyForm(112, 96)
OBJECTS_FORM = ReplyForm(720, is_held_in_streams=True)


@dataclass(frozen=True)
class RequestCost:
    """The bytes of a request.

    Args:
        prompts: number of tokens of each prompt.
        num_choices: choices of each prompt.
        max_tokens: tokens that each choice of a prompt generates at most.
        num_logprobs: tokens listed for each generated token, itself included; 0 without logprobs.
        num_prompt_logprobs: tokens listed for each token of a prompt.
    """

    prompts: Sequence[int]
    num_choices: int
    max_tokens: Sequence[int]
    num_logprobs: int
    num_prompt_logprobs: int
    form: ReplyForm
    is_stream: bool

    @property
    def unread_bytes(self) -> int:
        """Bytes of events that wait to be read while the reader keeps up."""
        event = EVENT_BYTES + TEXT_BYTES + (logprobs_bytes(1, self.num_logprobs) if self.num_logprobs else 0)
        return event * self.num_choices * sum(min(FREE_UNREAD, count) for count in self.max_tokens)

    @property
    def nbytes(self) -> int:
        """Bytes that are reserved before the request runs."""
        num_prompt_tokens, num_prompts = sum(self.prompts), len(self.prompts)
        prompt = num_prompts * PROMPT_BYTES + num_prompt_tokens * PROMPT_TOKEN_BYTES
        choice = num_prompts * CHOICE_BYTES + num_prompt_tokens * CHOICE_TOKEN_BYTES
        if self.num_prompt_logprobs:
            listed = 0 if self.is_stream else self.form.prompt_logprob_bytes * self.num_prompt_logprobs
            choice += logprobs_bytes(num_prompt_tokens, self.num_prompt_logprobs) + num_prompt_tokens * listed
        holds_logprobs = self.form.is_held_in_streams or not self.is_stream
        token = NEW_TOKEN_BYTES + (self.form.logprob_bytes * self.num_logprobs if holds_logprobs else 0)
        return prompt + self.num_choices * (choice + sum(self.max_tokens) * token) + self.unread_bytes

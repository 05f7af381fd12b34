"""One request while the engine works on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from .request import TokenStream
from .text import TextAssembler


@dataclass(eq=False)
class Sequence:
    """Tokens, how many of them are in the KV cache, and where."""

    stream: TokenStream
    text: TextAssembler
    seed: int
    token_ids: list[int] = field(init=False)  # prompt and generated
    num_cached: int = 0
    block_table: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.token_ids = list(self.stream.request.prompt_ids)

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - len(self.stream.request.prompt_ids)

    @property
    def num_uncached(self) -> int:
        return len(self.token_ids) - self.num_cached

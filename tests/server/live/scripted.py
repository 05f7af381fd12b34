"""A model with scripted replies in the format of some family, behind a socket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import openai

from server.engine.text.codec import Codec
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.text.tokenizer import Tokenizer
from tests.byte_tokenizer import save_byte_tokenizer
from tests.chat_formats import Family
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import serving_rig

TURN = "assistant: "  # before each of its turns
END = "<|end_of_text|>"


@contextmanager
def serving_family(family: Family, replies: Sequence[str], folder: Path) -> Iterator[openai.OpenAI]:
    """A client of a server whose model writes the first reply, and the second if the prompt contains the first."""
    save_byte_tokenizer(folder, family.template, (*family.special, END))
    end = 256 + len(family.special)
    codec = Codec(Tokenizer(FolderCheckpoint(folder)), eos_token_ids=frozenset({end}))
    rig = Rig(1024, eos_token_ids=frozenset({end}), vocab_size=end + 1, detokenizer=codec.detokenizer)
    turn, opened = codec.encode(TURN), codec.encode(TURN + family.prompt_end)
    scripts = [[*codec.encode(reply), end] for reply in replies]

    def next_token(token_ids: Sequence[int]) -> int:
        tokens = list(token_ids)
        places = [place for place in range(len(tokens)) if tokens[place : place + len(turn)] == turn]
        if not places:
            return end
        script, num_written = scripts[len(places) - 1], len(tokens) - places[-1] - len(opened)
        return script[num_written] if 0 <= num_written < len(script) else end

    rig.model.next_token = next_token
    with (
        serving_rig(rig, codec) as server,
        openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client

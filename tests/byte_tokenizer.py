"""A tokenizer whose tokens are the 256 bytes, and a chat template of plain text, for models over bytes."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from server.engine.text.codec import Codec
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.text.tokenizer import Tokenizer as ModelTokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def save_byte_tokenizer(folder: Path, chat_template: str | None = CHAT_TEMPLATE, special: tuple[str, ...] = ()) -> None:
    """Write it to a folder.

    Args:
        special: tokens whose ids follow the bytes.
    """
    tokenizer = Tokenizer(BPE({letter: byte for byte, letter in bytes_to_unicode().items()}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = chat_template
    fast.save_pretrained(folder)


def byte_codec(folder: Path, chat_template: str | None = CHAT_TEMPLATE) -> Codec:
    """The codec of such a tokenizer, which is written to a folder."""
    save_byte_tokenizer(folder, chat_template)
    return Codec(ModelTokenizer(FolderCheckpoint(folder)))

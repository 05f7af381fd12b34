"""Tokenizers and chat templates, made from the metadata of GGUF files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from server.model.checkpoint.gguf.end_tokens import TOKEN_TYPES, TOKENS
from server.model.checkpoint.gguf.gguf_file import GgufFile
from server.model.checkpoint.gguf.pre_tokenizers import DEFAULT, PRE_TOKENIZERS
from server.model.checkpoint.gguf.vocabularies import KINDS, Vocabulary, add_whole_tokens
from server.model.errors import ModelError

MODEL, PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
SCORES, MERGES = "tokenizer.ggml.scores", "tokenizer.ggml.merges"
TEMPLATE, TEMPLATE_NAMES = "tokenizer.chat_template", "tokenizer.chat_templates"
BYTE_LEVEL, SENTENCEPIECE, GEMMA4 = "gpt2", "llama", "gemma4"  # the kinds of tokenizers
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
SENTENCEPIECE_IDS: Mapping[str, int] = {"unknown": 0, "bos": 1, "eos": 2}  # where the file does not say them
REMEDY = "name the model that it was made from with --config-from"


def make_tokenizer(file: GgufFile) -> PreTrainedTokenizerBase:
    """Make the tokenizer of a file, with its chat template.

    Raises:
        ModelError: the file has no tokenizer, or one of a kind that Greenroom does not know.
    """
    check_tokenizer(file)
    kind, pre_tokenizer = file.plain(MODEL, str) or "", PRE_TOKENIZERS[_pre_tokenizer_name(file)]
    special = {name: token for name, key in SPECIAL.items() if (token := _special_token(file, kind, key)) is not None}
    adds_space = file.plain("tokenizer.ggml.add_space_prefix", bool)
    vocabulary = Vocabulary(
        tokens=[token or f"[EMPTY_{number}]" for number, token in enumerate(file.plain(TOKENS, list) or [])],
        types=file.numbers(TOKEN_TYPES),
        scores=_scores(file),
        merges=file.plain(MERGES, list) or [],
        pre_tokenizer=pre_tokenizer,
        unknown=special.get("unk_token"),
        adds_space=kind == SENTENCEPIECE if adds_space is None else adds_space,
        model_name=file.plain("general.name", str) or "",
    )
    try:
        tokenizer = KINDS[kind](vocabulary)
        add_whole_tokens(tokenizer, vocabulary)
    except Exception as error:  # the library raises Exception for merges of unknown tokens
        raise ModelError(f"the tokenizer of {file.name} can't be used: {error}; download the file again") from error
    begins = file.plain("tokenizer.ggml.add_bos_token", bool)
    by_kind = kind == SENTENCEPIECE or (kind == BYTE_LEVEL and pre_tokenizer.adds_begin)
    # Gemma 4's chat template begins with the token itself, so that the files' flag would double it.
    has_begin = kind != GEMMA4 and (by_kind if begins is None else begins)
    begin = special.get("bos_token") if has_begin else None
    end = special.get("eos_token") if file.plain("tokenizer.ggml.add_eos_token", bool) else None
    _surround(tokenizer, begin, end)
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
    found.chat_template = chat_template(file)
    return found


def check_tokenizer(file: GgufFile) -> None:
    """Raise ModelError if a file has no tokenizer, or one that is not read or does not fit the table of embeddings."""
    tokens, kind = file.plain(TOKENS, list), file.plain(MODEL, str)
    if tokens is None or kind is None:
        raise ModelError(f"{file.name} has no tokenizer ({TOKENS}); {REMEDY}")
    if kind not in KINDS:
        raise ModelError(f"{file.name} has a tokenizer of the kind {kind!r}, which Greenroom does not read; {REMEDY}")
    rows = num_embeddings(file)
    if rows is not None and rows != len(tokens):
        raise ModelError(
            f"the tokenizer of {file.name} has {len(tokens)} tokens, but its table of embeddings {rows};"
            " download the file again"
        )
    token, count = next(iter(Counter(filter(None, tokens)).most_common(1)), ("", 0))
    if count > 1:
        raise ModelError(f"the tokenizer of {file.name} has {token!r} twice; download the file again")
    if kind == BYTE_LEVEL and _pre_tokenizer_name(file) not in PRE_TOKENIZERS:
        raise ModelError(
            f"{file.name} splits text by the rules of {file.plain(PRE, str)!r} ({PRE}), which Greenroom does not "
            f"know; {REMEDY}"
        )
    if kind != SENTENCEPIECE and file.plain(MERGES, list) is None:
        raise ModelError(f"the tokenizer of {file.name} has no merges ({MERGES}); {REMEDY}")


def num_embeddings(file: GgufFile) -> int | None:
    """Return the rows of the table of embeddings; None if there is no such table."""
    table = file.tensors.get("token_embd.weight")
    return None if table is None else table.shape[0]


def chat_template(file: GgufFile) -> str | dict[str, str] | None:
    """Return the chat template of a file; several by name, the unnamed one as ``default``."""
    default = file.plain(TEMPLATE, str)
    texts = ((name, file.plain(f"{TEMPLATE}.{name}", str)) for name in file.plain(TEMPLATE_NAMES, list) or ())
    named = {name: template for name, template in texts if template is not None}
    if not named or default is None:
        return named.get("default") if default is None else default
    return {"default": default, **named}


def _pre_tokenizer_name(file: GgufFile) -> str:
    name = file.plain(PRE, str) or DEFAULT
    return name if file.plain(MODEL, str) == BYTE_LEVEL else DEFAULT


def _special_token(file: GgufFile, kind: str, key: str) -> str | None:
    """Return a token by the name of its key; None if the file has none."""
    name, tokens = f"tokenizer.ggml.{key}_token_id", file.plain(TOKENS, list) or []
    number = file.plain(name, int)
    if number is None:
        default = SENTENCEPIECE_IDS.get(key) if kind == SENTENCEPIECE else None
        return tokens[default] if default is not None and default < len(tokens) else None
    if not 0 <= number < len(tokens):
        raise ModelError(f"{name} of {file.name} is {number!r}, not one of {len(tokens)} tokens; download it again")
    return tokens[number]


def _scores(file: GgufFile) -> list[float]:
    found = file.metadata.get(SCORES)
    if found is None:
        return []
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iuf" or not np.isfinite(found).all():
        raise ModelError(f"{SCORES} of {file.name} is not an array of numbers; download the file again")
    scores: list[float] = found.tolist()
    return scores


def _surround(tokenizer: Tokenizer, begin: str | None, end: str | None) -> None:
    """Let a tokenizer add a token before each text, and one after it."""
    around = [token for token in (begin, end) if token is not None]
    if around:
        template = [*([begin] if begin else []), "$A", *([end] if end else [])]
        numbers = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(around)]
        tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=numbers)

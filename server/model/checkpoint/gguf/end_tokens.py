"""The tokens of GGUF files that end a turn, and those that are special by their names.

Source: ``llama-vocab.cpp`` of llama.cpp, whose lists these are.
"""

from __future__ import annotations

from itertools import zip_longest

from server.model.checkpoint.gguf.gguf_file import GgufFile

TOKENS, TOKEN_TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
END_IDS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")  # tokens that end a turn, or the filling of a gap
NORMAL, BYTE = 1, 6  # types of tokens that are parts of words
END_TOKENS = {  # tokens that end a turn in every vocabulary that has them
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "[e~[",
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
}
BETWEEN_PARTS = {  # tokens that end a turn, except in vocabularies that have all of the others
    "<|end|>": ({"<|return|>", "<|call|>"}, {"<|calls|>", "<|flush|>"}),
    "</s>": ({"<|tool_response>"},),
}
GLM, GLM_ENDS = ("glm4", "chatglm-bpe"), {"<|user|>", "<|observation|>"}  # whose turns end where another's begins


def end_token_ids(file: GgufFile) -> list[int]:
    """Return the tokens that end a turn: those that the file names, and those of usual names."""
    tokens, types = file.plain(TOKENS, list) or [], file.numbers(TOKEN_TYPES)
    named = (file.plain(f"tokenizer.ggml.{key}_token_id", int) for key in END_IDS)
    usual = {
        token: index
        for index, (token, kind) in enumerate(zip_longest(tokens, types, fillvalue=None))
        if token in END_TOKENS | GLM_ENDS and kind not in (NORMAL, BYTE)
    }
    for token, others in BETWEEN_PARTS.items():
        if any(other <= usual.keys() for other in others):
            usual.pop(token, None)
    if file.plain("tokenizer.ggml.pre", str) not in GLM:
        usual = {token: index for token, index in usual.items() if token not in GLM_ENDS}
    return sorted({each for each in named if each is not None and 0 <= each < len(tokens)} | set(usual.values()))

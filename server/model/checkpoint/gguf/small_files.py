"""The small files of a checkpoint, made from the metadata of a GGUF file for a pack."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from expert_store import FileName
from server.model.architecture import find_model_class
from server.model.checkpoint.config_checks import CONFIG
from server.setting_values import GENERATION_FILE


def make_small_files(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, generation: Mapping[str, Any] | None
) -> Mapping[FileName, bytes]:
    """Return config, tokenizer, chat template and defaults for generation, as transformers saves them."""
    values = json.loads(config.to_json_string(use_diff=False)) | {"architectures": [find_model_class(config).__name__]}
    made = {FileName(CONFIG): _encoded(values)}
    if generation:
        made[FileName(GENERATION_FILE)] = _encoded(generation)
    with TemporaryDirectory(prefix="greenroom-") as folder:
        tokenizer.save_pretrained(folder)
        found = {FileName(path.name): path.read_bytes() for path in sorted(Path(folder).glob("*.*"))}
    return {**found, **made}


def _encoded(values: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(values), indent=2).encode()

"""Weight bytes read by a decode step, from the headers of a checkpoint, a pack or a GGUF file."""

from __future__ import annotations

import json
import re
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

GGUF_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
GGUF_STRING, GGUF_ARRAY = 8, 9
GGUF_EXPERT = re.compile("_exps")
HUB_EXPERT = re.compile(r"\.experts\.|\.block_sparse_moe\.(?:in|out)put_linear")
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
CHOICE_COUNTS = ("num_experts_per_tok", "top_k_experts")


@dataclass(frozen=True)
class Weights:
    """Sizes of one model in one format."""

    trunk_bytes: int  # without the embedding, because a step reads only single rows
    expert_bytes: int  # per expert
    num_experts: int  # per layer
    top_k: int
    num_layers: int  # that have experts

    def experts_of_step(self, streams: int) -> float:
        """Return the mean number of distinct experts per layer, if tokens choose independently."""
        return self.num_experts * (1 - (1 - self.top_k / self.num_experts) ** streams)

    def step_bytes(self, streams: int) -> float:
        """Return the mean number of bytes that a decode step must read."""
        return self.trunk_bytes + self.num_layers * self.experts_of_step(streams) * self.expert_bytes


@dataclass(frozen=True)
class CacheSizes:
    """Bytes that a step reads of one sequence's KV cache and recurrent states."""

    groups: Sequence[tuple[int, int | None]]  # bytes of a token, and the tokens that a query sees; None for all
    state_bytes: int = 0  # whatever the length

    def step_bytes(self, tokens: int) -> int:
        """Return the bytes that a decode step reads after this many tokens."""
        seen = (nbytes * min(tokens, window or tokens) for nbytes, window in self.groups)
        return sum(seen) + self.state_bytes


def cache_sizes(python: str, model: Path) -> CacheSizes:
    """Return the sizes that ``greenroom inspect`` tells; llama.cpp's float16 cache has as many bytes.

    Args:
        python: interpreter of Greenroom's environment.
    """
    command = [python, "-m", "server.cli", "inspect", str(model), "--json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    cache = report["kv_cache"]
    groups = [(group["bytes_per_token"], group["window"]) for group in cache["groups"]]
    return CacheSizes(groups, cache["bytes_per_sequence"])


def weights_of(path: Path, config: dict[str, Any]) -> Weights:
    """Return the weight sizes of a checkpoint folder, a pack folder or a GGUF file; ``config`` is the model config."""
    experts, top_k = _first(config, EXPERT_COUNTS), _first(config, CHOICE_COUNTS)
    if path.is_file():
        sizes = gguf_sizes(path)
        is_expert, embedding, head = GGUF_EXPERT, "token_embd.weight", "output.weight"
    else:
        sizes = safetensors_sizes(path)
        is_expert, embedding, head = HUB_EXPERT, "model.embed_tokens.weight", "lm_head.weight"
    of_experts = {name: size for name, size in sizes.items() if is_expert.search(name)}
    trunk = sum(sizes.values()) - sum(of_experts.values())
    if any(name.startswith(head) for name in sizes):  # a pack's quantised head has further letters
        trunk -= sizes.get(embedding, 0)
    expert_bytes = sum(of_experts.values())
    num_layers = len({number for name in of_experts for number in re.findall(r"\.(\d+)\.", name)[:1]})
    if (path / "manifest.json").exists():
        expert_bytes = sum(file.stat().st_size for file in path.rglob("experts-*.pack"))
        num_layers = len(json.loads((path / "manifest.json").read_text())["layers"])
    return Weights(trunk, expert_bytes // (num_layers * experts), experts, top_k, num_layers)


def _first(config: dict[str, Any], names: Sequence[str]) -> int:
    """Return the first of these fields that a config has."""
    return next(config[name] for name in names if config.get(name))


def safetensors_sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each tensor in all files of a folder, recursively."""
    sizes = {}
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        for name, fields in header.items():
            if name != "__metadata__":
                begin, end = fields["data_offsets"]
                sizes[name] = end - begin
    return sizes


def gguf_sizes(path: Path) -> dict[str, int]:
    """Return the bytes of each tensor of a GGUF file, including alignment padding.

    Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    with path.open("rb") as file:
        magic, _, num_tensors, num_fields = struct.unpack("<4sIQQ", file.read(24))
        if magic != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file")
        alignment = 32
        for _ in range(num_fields):
            name = _gguf_string(file)
            value = _gguf_value(file, _read(file, "I"))
            if name == "general.alignment":
                alignment = value
        offsets = {}
        for _ in range(num_tensors):
            name = _gguf_string(file)
            file.seek(8 * _read(file, "I") + 4, 1)  # skip dimensions and type
            offsets[name] = _read(file, "Q")
        data = -(-file.tell() // alignment) * alignment
    end = path.stat().st_size - data
    names = sorted(offsets, key=offsets.__getitem__)
    ends = [offsets[name] for name in names[1:]] + [end]
    return {name: after - offsets[name] for name, after in zip(names, ends, strict=True)}


def _read(file: BinaryIO, kind: str) -> Any:
    return struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0]


def _gguf_string(file: BinaryIO) -> str:
    return file.read(_read(file, "Q")).decode()


def _gguf_value(file: BinaryIO, kind: int) -> Any:
    if kind == GGUF_STRING:
        return _gguf_string(file)
    if kind != GGUF_ARRAY:
        return _read(file, GGUF_SCALARS[kind])
    item_kind, count = _read(file, "I"), _read(file, "Q")
    if item_kind in GGUF_SCALARS:
        file.seek(count * struct.calcsize(f"<{GGUF_SCALARS[item_kind]}"), 1)
        return None
    return [_gguf_value(file, item_kind) for _ in range(count)]

"""benchmarks.full_size: the files that it makes, its figures, and a run with a tiny file."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from benchmarks import full_size
from benchmarks.comparison.control_group import ControlGroupError
from benchmarks.made_gguf.blocks import FORMATS
from benchmarks.made_gguf.heat import lognormal, of_traces
from benchmarks.made_gguf.shapes import SHAPES, LatentSizes
from benchmarks.made_gguf.write import WriteError, write_gguf
from benchmarks.memory_use import server
from benchmarks.paged_load import reads, runs
from benchmarks.paged_load.reads import Reads
from benchmarks.paged_load.report import medians
from server.model.trunk_loader import load_trunk

PUBLISHED_BYTES = {"qwen3-30b-a3b": 18.56e9, "gpt-oss-20b": 12.11e9, "glm-4.7-flash": 18.2e9}


@pytest.mark.parametrize("name", PUBLISHED_BYTES)
def test_shape_is_as_large_as_the_published_file(name: str) -> None:
    assert SHAPES[name].nbytes == pytest.approx(PUBLISHED_BYTES[name], rel=0.01)


@pytest.mark.parametrize("name", FORMATS)
def test_random_blocks_have_the_wanted_deviation(name: str) -> None:
    blocks = FORMATS[name].random((8, 4, 512), 0.25, np.random.default_rng(0))
    numbers = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
    assert numbers.shape == (8, 4, 512)
    assert numbers.std() == pytest.approx(0.25, rel=0.35 if name == "MXFP4" else 0.02)  # powers of two
    assert abs(numbers.mean()) < 0.02


def test_file_is_read_with_the_tensors_and_fields_of_its_shape(tmp_path: Path) -> None:
    write_gguf(SHAPES["tiny"], tmp_path / "tiny.gguf", lognormal(0.35))
    reader = gguf.GGUFReader(tmp_path / "tiny.gguf")
    stored = {
        tensor.name: (tuple(reversed(tensor.shape.tolist())), tensor.tensor_type.name) for tensor in reader.tensors
    }
    assert stored == {tensor.name: (tensor.shape, tensor.type) for tensor in SHAPES["tiny"].tensors()}
    assert reader.fields["qwen3moe.expert_used_count"].contents() == SHAPES["tiny"].top_k
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == SHAPES["tiny"].vocabulary


SMALL: dict[str, Any] = {
    "num_layers": 2,
    "vocabulary": 1024,
    "context": 256,
    "num_experts": 4,
    "top_k": 2,
    "expert_width": 256,
}
SMALL_SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-30b-a3b": {"hidden": 256, "num_heads": 4, "num_kv_heads": 2, "head_dim": 64},
    "gpt-oss-20b": {"hidden": 256, "num_heads": 4, "num_kv_heads": 2, "head_dim": 64},
    "glm-4.7-flash": {
        "hidden": 256,
        "num_heads": 2,
        "latent": LatentSizes(query_rank=256, latent_rank=256, plain_dim=64, rotary_dim=32, value_dim=128),
        "dense_width": 256,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_SHAPES)
def test_file_of_each_architecture_is_one_that_greenroom_loads(name: str, tmp_path: Path) -> None:
    shape = replace(SHAPES[name], **SMALL, **SMALL_SHAPES[name])
    write_gguf(shape, tmp_path / "small.gguf", lognormal(0.35))
    trunk = load_trunk(tmp_path / "small.gguf", torch.float32, torch.device("cpu"))
    layers = trunk.catalog.layers
    assert [len(entry.experts) for entry in layers.values()] == [4] * (2 - shape.num_dense_layers)


def test_router_rows_of_routing_logs_choose_experts_unevenly_by_their_lengths() -> None:
    rng = np.random.default_rng(0)
    lengths = of_traces()(128, 8, rng)
    logits = rng.standard_normal((4000, 128)) * lengths
    counts = np.bincount(np.argpartition(-logits, 8)[:, :8].ravel(), minlength=128)
    order = np.argsort(lengths)
    assert counts[order[-32:]].sum() > 1.5 * counts.sum() / 4  # as uneven as in the logs
    assert np.corrcoef(lengths, counts)[0, 1] > 0.9


def test_full_disk_is_told_before_anything_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1e6))
    with pytest.raises(WriteError, match=r"tiny.gguf takes 0.0 GB, and .* has 0.0 GB free; free some"):
        write_gguf(SHAPES["tiny"], tmp_path / "tiny.gguf", lognormal(0.35))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.gguf"], "absent.gguf is no file and no shape; shapes are qwen3-30b-a3b"),
        (["glm-4.7-flash", "--layers", "1"], "--layers 1 leaves no layer with experts"),
        (["tiny", "--heat", "hot"], "--heat hot is no number"),
    ],
)
def test_file_that_can_not_be_made_is_one_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=message):
        full_size.model_file(full_size.parse([*arguments, "--work", str(tmp_path)]))


def test_share_of_the_disk_counts_from_the_first_to_the_last_read() -> None:
    assert Reads(nbytes=800, reading_seconds=2.0, cores=1.0).disk_share(500.0) == 0.8
    assert Reads(nbytes=0, reading_seconds=0.0, cores=1.0).disk_share(500.0) is None


def test_variants_are_compared_with_the_first_by_medians_of_rounds() -> None:
    def entry(engine: str, seconds: float) -> dict[str, Any]:
        return {
            "size": "2/5",
            "engine": engine,
            "prompts": [{"tokens": 64, "first_token_seconds": seconds, "bytes_read": 5}],
        }

    entries = [entry("chunks", 4.0), entry("layers", 1.0), entry("layers", 3.0), entry("chunks", 4.0)]
    rows = [row for row in medians(entries) if "first token" in row["figure"]]
    assert [(row["engine"], row["median"], row["ratio"]) for row in rows] == [
        ("chunks", 4.0, 1.0),
        ("layers", 2.0, 0.5),
    ]


def test_size_without_control_groups_is_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise ControlGroupError("no memory control group can be created")

    monkeypatch.setattr(server, "ControlGroup", refuse)
    monkeypatch.setattr(sys, "argv", ["full_size", "tiny", "--work", str(tmp_path), "--sizes", "1/2"])
    with pytest.raises(SystemExit, match="1"):
        full_size.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["entries"] == []
    assert result["skipped"][-1] == "1/2, greenroom: no memory control group can be created"


def run_peer(tmp_path: Path, python: str) -> runs.Runs:
    """Run a tiny file with an interpreter of llama.cpp's environment, without Greenroom."""
    options = full_size.parse(["tiny", "--work", str(tmp_path), "--logs", str(tmp_path), "--llama-cpp", python])
    options.variant = []
    measured = runs.Runs(runs.Model.read(full_size.model_file(options)), options)
    measured.run()
    return measured


def test_peer_is_measured_at_the_same_prompts_and_streams(tmp_path: Path) -> None:
    peer = tmp_path / "peer"
    reply = '{"first_token_seconds": 2.0, "tokens": 6, "seconds": 3.0}'
    peer.write_text(f"""#!/bin/sh\necho '{{"version": "1"}}'\nwhile read line; do echo '{reply}'; done\n""")
    peer.chmod(0o755)
    (entry,) = run_peer(tmp_path, str(peer)).entries
    assert [(each["tokens"], each["first_token_seconds"]) for each in entry["prompts"]] == [(16, 2.0), (64, 2.0)]
    assert [(each["streams"], each["tokens_per_second"]) for each in entry["decoding"]] == [(1, 2.0), (2, 2.0)]
    assert entry["is_whole"]


@pytest.mark.parametrize("python", [sys.executable, "absent"])
def test_peer_that_is_not_installed_is_skipped_with_one_sentence(python: str, tmp_path: Path) -> None:
    measured = run_peer(tmp_path, python)
    sentence = f"llama.cpp: {python} finds no module llama_cpp; give --llama-cpp an interpreter that does"
    assert sentence in measured.skipped
    assert measured.entries == []


def test_bytes_since_a_moment_are_those_read_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = iter([0, 300, 1000])
    process: Any = SimpleNamespace(
        io_counters=lambda: SimpleNamespace(read_bytes=next(counted)),
        cpu_times=lambda: SimpleNamespace(user=0.0, system=0.0),
    )
    moments = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(reads, "time", SimpleNamespace(perf_counter=lambda: next(moments)))
    sampler = reads.ReadSampler(process)
    sampler._samples.append(sampler._now())
    assert sampler.bytes_since(2.5) == 700


@pytest.mark.slow
def test_tiny_run_measures_prompts_streams_and_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variant = f"paged {Path.cwd()} --host-expert-memory 1MiB"
    command = ["full_size", "tiny", "--work", str(tmp_path), "--logs", str(tmp_path), "--variant", variant]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="0"):
        full_size.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    (entry,) = result["entries"]
    assert result["skipped"] == [
        "llama.cpp: no environment is given; set --llama-cpp PYTHON",
        "ftllm: no environment is given; set --ftllm PYTHON",
    ]
    assert [prompt["tokens"] for prompt in entry["prompts"]] == [16, 64]
    assert all(0 < prompt["missing_bytes"] <= result["experts"]["nbytes"] for prompt in entry["prompts"])
    assert entry["beside"][0]["without"]["p95_seconds"] > 0
    assert [each["streams"] for each in entry["decoding"]] == [1, 2]
    assert all(each["experts_missed_per_step"] > 0 for each in entry["decoding"])
    assert all(each["bytes_read_per_token"] >= 0 for each in entry["decoding"])

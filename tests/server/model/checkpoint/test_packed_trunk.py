"""Trunks packed as int8 or int4: the quantised layers, and results equal to those of dequantised matrices."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from expert_store import CheckpointError, Manifest, open_pack, read_index, write_pack
from server.inspection.model_summary import summarise_model
from server.model.checkpoint import packed_trunk
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.locate import BUNDLED
from server.model.checkpoint.read_config import read_config
from server.model.checkpoint.tensor_map import experts_modules
from server.model.checkpoint.weight_formats import BLOCK_FORMATS, QuantisedWeights
from server.model.errors import ModelError
from server.model.model_building import build_model
from server.model.opening.packing import pack_source
from server.model.quantised.linear import QuantisedLinear
from server.model.sequential.sequential_trunk import SequentialTrunk
from server.model.trunk_loader import load_trunk
from server.settings import ServeSettings
from tests.checkpoints import make_checkpoint
from tests.quantise import fp8, publish
from tests.server.model.checkpoint.test_packing import logits_of

NAMES = ("qwen3_moe", "mixtral", "olmoe", "gpt_oss", "deepseek_v3", "jamba")
CASES: list[tuple[str, QuantisedWeights]] = [
    *((name, "int8") for name in NAMES),
    *((name, "int4") for name in ("qwen3_moe", "gpt_oss", "deepseek_v3", "gemma4")),
]
ERRORS = {"int8": 0.01, "int4": 0.1}  # relative, per matrix
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantise even the small layers of tiny models."""
    monkeypatch.setattr(packed_trunk, "LEAST_WEIGHTS", 1)


def pack(folder: Path, out: Path, trunk: QuantisedWeights = "int8") -> Path:
    model = build_model(read_config(folder), torch.bfloat16)
    write_pack(pack_source(model, FolderCheckpoint(folder), folder.name, "bfloat16", trunk), out, 1, lambda _: None)
    return out


@dataclass(frozen=True)
class Packed:
    """A pack and the checkpoint that it was made from."""

    folder: Path
    checkpoint: Path
    trunk: QuantisedWeights


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    name, trunk = request.param
    folder = tmp_path_factory.mktemp(name)
    checkpoint = make_checkpoint(name, folder / name, torch.bfloat16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_trunk, "LEAST_WEIGHTS", 1)
        return Packed(pack(checkpoint, folder / "out", trunk), checkpoint, trunk)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen3_moe", tmp_path_factory.mktemp("checkpoints") / "tiny", torch.bfloat16)


@pytest.fixture
def packed(tiny: Path, tmp_path: Path) -> Path:
    return pack(tiny, tmp_path / "out")


def stored(out: Path, weights: QuantisedWeights = "int8") -> set[str]:
    """The hub names of the matrices in a format."""
    codes = BLOCK_FORMATS[weights].CODES
    return {name.removesuffix(codes) for name in read_index([open_pack(out).trunk]) if name.endswith(codes)}


@pytest.mark.slow
def test_logits_are_those_of_the_dequantised_matrices(case: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = load_trunk(case.folder, torch.float32)
    assert not isinstance(trunk, SequentialTrunk)
    found = logits_of(trunk)
    monkeypatch.setattr(QuantisedLinear, "forward", lambda self, rows: F.linear(rows, self.weight, self.bias))
    for one, other in zip(found, logits_of(trunk), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_matrices_are_near_those_of_the_checkpoint(case: Packed) -> None:
    parts, plain = load_file(open_pack(case.folder).trunk.name), load_file(case.checkpoint / "model.safetensors")
    for name in stored(case.folder, case.trunk):
        tensors = {part.removeprefix(name): value for part, value in parts.items() if part.startswith(name)}
        found, wanted = BLOCK_FORMATS[case.trunk].dequantise(tensors, ""), plain[name].float()
        assert float((found - wanted).norm() / wanted.norm()) < ERRORS[case.trunk]


@pytest.mark.slow
def test_its_bytes_are_known_before_loading(case: Packed) -> None:
    """With what is not quantised in both types."""
    dtype = torch.bfloat16 if case.trunk == "int8" else torch.float32
    checked: list[int] = []
    trunk = load_trunk(case.folder, dtype, check_memory=lambda nbytes, _: checked.append(nbytes))
    settings = ServeSettings.model_validate({"dtype": str(dtype).removeprefix("torch.")})
    found = summarise_model(str(case.folder), settings, CPU)
    assert found.trunk_format == case.trunk
    assert found.outline.trunk_bytes == trunk.nbytes
    assert checked[0] <= trunk.nbytes < load_trunk(case.checkpoint, dtype).nbytes


@pytest.mark.parametrize("name", NAMES)
def test_routers_norms_and_embeddings_are_not_quantised(name: str, tmp_path: Path) -> None:
    model = build_model(read_config(make_checkpoint(name, tmp_path / name, torch.bfloat16)), torch.bfloat16)
    layers = packed_trunk.linear_layers(model)
    widths = {module.num_experts for module in experts_modules(model).values()}
    assert not {layer.out_features for layer in layers.values()} & widths
    assert any("attn" in found for found in layers)
    assert not any("norm" in found or "embed" in found for found in layers)


def test_projections_that_latent_attention_splits_are_not_quantised(tmp_path: Path) -> None:
    out = pack(make_checkpoint("deepseek_v3", tmp_path / "checkpoint", torch.bfloat16), tmp_path / "out")
    assert "model.layers.0.self_attn.kv_a_proj_with_mqa.weight" in stored(out)
    assert not any("kv_b_proj" in name for name in stored(out))


@pytest.mark.slow
def test_a_tied_head_and_its_table_are_one_int8_matrix(tmp_path: Path) -> None:
    tied = shutil.copytree(BUNDLED, tmp_path / "tied")
    tensors = load_file(tied / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, tied / "model.safetensors")
    once, twice = pack(BUNDLED, tmp_path / "once", "int4"), pack(tied, tmp_path / "twice", "int4")
    assert stored(once) == stored(twice) == {"model.embed_tokens.weight"}
    for one, other in zip(*(logits_of(load_trunk(out, torch.float32)) for out in (once, twice)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_a_head_is_int8_beside_layers_in_int4(tiny: Path, tmp_path: Path) -> None:
    out = pack(tiny, tmp_path / "out", "int4")
    assert stored(out) == {"lm_head.weight"}
    assert stored(out, "int4") == stored(pack(tiny, tmp_path / "other")) - {"lm_head.weight"}


@pytest.mark.slow
def test_an_int8_trunk_has_the_tensors_that_older_packs_have(packed: Path) -> None:
    found = read_index([open_pack(packed).trunk])
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors = {part.removeprefix(name): (source.dtype, source.shape) for part, source in found.items() if name in part}
    assert tensors == {"_q8": (torch.int8, (2, 8, 16, 4)), "_q8_scale": (torch.float16, (2, 1, 16))}


@pytest.mark.slow
def test_small_layers_are_not_quantised(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_trunk, "LEAST_WEIGHTS", 128 * 32)
    assert stored(pack(tiny, tmp_path / "out")) == {"lm_head.weight"}


@pytest.mark.slow
def test_quantised_trunks_are_quantised_anew(tiny: Path, tmp_path: Path) -> None:
    quantised, reference = publish(tiny, tmp_path, fp8())
    found = logits_of(load_trunk(pack(quantised, tmp_path / "out"), torch.float32))
    wanted = logits_of(load_trunk(pack(reference, tmp_path / "other"), torch.float32))
    similarity = [torch.cosine_similarity(one[0], other[0], dim=0) for one, other in zip(found, wanted, strict=True)]
    assert min(similarity) > 0.99


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "weights"), [("lm_head.weight", "int8"), ("model.layers.0.self_attn.q_proj.weight", "int4")]
)
def test_nan_and_infinity_are_refused_by_name(tiny: Path, tmp_path: Path, name: str, weights: QuantisedWeights) -> None:
    folder = shutil.copytree(tiny, tmp_path / "odd")
    tensors = load_file(folder / "model.safetensors")
    tensors[name][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError) as refusal:
        pack(folder, tmp_path / "out", weights)
    assert (
        str(refusal.value)
        == f"{name} holds NaN or infinity, which {weights} can't represent; pack it with --trunk unchanged"
    )


@pytest.mark.slow
def test_a_manifest_omits_the_format_of_an_unchanged_trunk(tiny: Path, tmp_path: Path) -> None:
    """So that earlier versions read it."""
    model = build_model(read_config(tiny), torch.bfloat16)
    write_pack(pack_source(model, FolderCheckpoint(tiny), "tiny", "bfloat16"), tmp_path / "out", 1, lambda _: None)
    assert "trunk" not in json.loads((tmp_path / "out" / "manifest.json").read_bytes())


@pytest.mark.slow
def test_a_pack_is_made_anew_for_another_trunk(tiny: Path, packed: Path) -> None:
    model = build_model(read_config(tiny), torch.bfloat16)
    source = pack_source(model, FolderCheckpoint(tiny), "tiny", "bfloat16", "int8")
    assert not write_pack(source, packed, 1, lambda _: None)
    assert write_pack(replace(source, model="tiny", trunk_format="unchanged", made=()), packed, 1, lambda _: None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_attention_heads": 8}, "does not have the model's shape"),
        ({"num_hidden_layers": 3, "trunk": "int3"}, "int3"),
    ],
)
def test_trunks_that_do_not_match_the_model_are_refused(
    packed: Path, changes: dict[str, object], complaint: str
) -> None:
    content = json.loads((packed / "manifest.json").read_bytes())
    del content["checksum"], content["format"], content["version"]
    path = packed / content["data"] / "config.json"
    content["trunk"] = changes.pop("trunk", "int8")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    content["files"]["config.json"] = [path.stat().st_size, None]
    (packed / "manifest.json").write_bytes(Manifest.model_validate(content).to_bytes())
    with pytest.raises(CheckpointError, match=complaint):
        load_trunk(packed, torch.float32)

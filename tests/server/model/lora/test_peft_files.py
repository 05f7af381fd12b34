"""Adapters in PEFT's files: what becomes of their tensors, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from expert_store import read_tensor
from server.model.adapters.errors import AdapterError
from server.model.lora.peft_files import AdapterFiles, locate, read_adapter
from server.model.lora.targets import LoraTargets
from server.model.lora_adapter import ExpertTarget, LoraAdapter, LoraMatrix
from server.model.trunk.adapter_targets import lora_targets
from server.model.trunk_loader import load_trunk
from tests.adapters import FUSED, change_config, make_adapter
from tests.checkpoints import make_checkpoint

PAGE = 1 << 20
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen3_moe", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def targets(checkpoint: Path) -> LoraTargets:
    return lora_targets(load_trunk(checkpoint, torch.float32))


@pytest.fixture(scope="module")
def saved(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    make_adapter(checkpoint, folder)
    return folder


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """A copy of an adapter on attention, to be damaged."""
    return shutil.copytree(saved, tmp_path / "adapter")


def loaded(files: AdapterFiles, name: str = "test") -> LoraAdapter:
    pages = files.pages
    raw = [
        pages.assemble(page, [read_tensor(source) for source in pages.sources(page)])
        for page in range(len(pages.pages))
    ]
    return pages.adapter(name, raw)


def delta(matrices: tuple[LoraMatrix, ...], outputs: int) -> torch.Tensor:
    """Return what an adapter adds to a matrix, ``(outputs, inputs)``."""
    total = torch.zeros(outputs, matrices[0].down.shape[1])
    for each in matrices:
        rows = slice(each.first_output, each.first_output + len(each.up))
        total[rows] += each.scale * each.up.float() @ each.down.float()
    return total


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of an adapter's file."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)


@pytest.mark.parametrize("is_rslora", [False, True])
def test_matrices_of_linear_layers_add_what_peft_adds(
    checkpoint: Path, targets: LoraTargets, tmp_path: Path, is_rslora: bool
) -> None:
    """Ranks and alphas differ by layer."""
    model = make_adapter(
        checkpoint,
        tmp_path,
        target_modules=["q_proj", "o_proj"],
        use_rslora=is_rslora,
        rank_pattern={"o_proj": 2, r"layers\.1\.self_attn\.q_proj": 3},
        alpha_pattern={"layers.2.self_attn.q_proj": 5},
    )
    files = read_adapter(tmp_path, targets, PAGE)
    found = loaded(files)
    assert (files.ranks, len(found.linears), found.experts) == ([2, 3, 4], 6, {})
    for name, matrices in found.linears.items():
        expected = model.base_model.model.get_submodule(name).get_delta_weight("default")
        torch.testing.assert_close(delta(matrices, len(expected)), expected)


def test_fused_parameters_add_what_peft_adds_to_each_expert(
    checkpoint: Path, targets: LoraTargets, tmp_path: Path
) -> None:
    model = make_adapter(
        checkpoint, tmp_path, target_modules=[], target_parameters=FUSED, rank_pattern={"mlp.experts.down_proj": 3}
    )
    files = read_adapter(tmp_path, targets, PAGE)
    found = loaded(files)
    assert files.ranks == [3, 4]
    assert len(found.experts) == 3 * 2 * 8
    for layer in range(3):
        wrapper = model.base_model.model.get_submodule(f"model.layers.{layer}.mlp.experts")
        for each in (wrapper, wrapper.base_layer):
            expected = each.get_delta_weight("default")  # (experts, outputs, inputs)
            for expert, matrix in enumerate(expected):
                matrices = found.experts[ExpertTarget(layer, expert, each.parameter_name)]
                torch.testing.assert_close(delta(matrices, len(matrix)), matrix.detach())


def test_small_pages_hold_the_same_matrices(checkpoint: Path, targets: LoraTargets, tmp_path: Path) -> None:
    """Experts and outputs are divided among pages."""
    make_adapter(checkpoint, tmp_path, target_parameters=FUSED)
    whole, divided = (loaded(read_adapter(tmp_path, targets, page_bytes)) for page_bytes in (PAGE, 1024))
    assert len(read_adapter(tmp_path, targets, 1024).checksums) > 10
    for name, matrices in whole.linears.items():
        outputs = targets.linears[name][1]
        torch.testing.assert_close(delta(divided.linears[name], outputs), delta(matrices, outputs), rtol=0, atol=0)
    for target, matrices in whole.experts.items():
        outputs = targets.experts[target.layer, target.parameter][1]
        torch.testing.assert_close(delta(divided.experts[target], outputs), delta(matrices, outputs), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("is_transposed", [True, False])
def test_parameters_that_are_stored_transposed_are_recognised_by_their_shapes(
    tmp_path: Path, is_transposed: bool
) -> None:
    """PEFT takes inputs for outputs where a module does not say that it is transposed."""

    def prepare(model: Any) -> None:
        for layer in model.model.layers:
            layer.mlp.experts.is_transposed = is_transposed

    checkpoint, parameters = make_checkpoint("gpt_oss", tmp_path / "model"), ["mlp.experts.gate_up_proj"]
    targets = lora_targets(load_trunk(checkpoint, torch.float32))
    model = make_adapter(
        checkpoint, tmp_path / "adapter", target_modules=[], target_parameters=parameters, prepare=prepare
    )
    found = loaded(read_adapter(tmp_path / "adapter", targets, PAGE))
    wrapper = model.base_model.model.get_submodule("model.layers.1.mlp.experts")
    expected = wrapper.get_delta_weight("default")[5].T.detach()  # stored as (inputs, outputs)
    torch.testing.assert_close(delta(found.experts[ExpertTarget(1, 5, "gate_up_proj")], 64), expected)


def test_matrices_of_single_experts_are_parts_of_the_fused_parameter(adapter: Path, targets: LoraTargets) -> None:
    """Adapters from before the parameters of experts were fused."""
    prefix = "base_model.model.model.layers.1.mlp.experts.3"
    parts = {name: (torch.randn(4, 32), torch.randn(24, 4)) for name in ("gate_proj", "up_proj")}
    parts["down_proj"] = torch.randn(4, 24), torch.randn(32, 4)

    def add(tensors: dict[str, torch.Tensor]) -> None:
        for name, (down, up) in parts.items():
            tensors |= {f"{prefix}.{name}.lora_A.weight": down, f"{prefix}.{name}.lora_B.weight": up}

    rewrite(adapter, add)
    found = loaded(read_adapter(adapter, targets, PAGE)).experts
    fused = delta(found[ExpertTarget(1, 3, "gate_up_proj")], 48)
    expected = torch.cat([2 * up @ down for down, up in (parts["gate_proj"], parts["up_proj"])])
    torch.testing.assert_close(fused, expected)
    down, up = parts["down_proj"]
    torch.testing.assert_close(delta(found[ExpertTarget(1, 3, "down_proj")], 32), 2 * up @ down)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("base_model.model.model.", ""),
        ("base_model.model.model.", "model."),
        ("base_model.model.model.", "base_model.model.model.language_model."),
        ("base_model.model.model.", "language_model.model."),
    ],
)
def test_names_with_other_prefixes_mean_the_text_model(
    adapter: Path, targets: LoraTargets, written: str, read: str
) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[read + name.removeprefix(written)] = tensors.pop(name)

    rewrite(adapter, rename)
    assert set(loaded(read_adapter(adapter, targets, PAGE)).linears) == {
        f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(3) for name in "qv"
    }


def test_tensors_of_16_bits_stay_as_they_are(adapter: Path, targets: LoraTargets) -> None:
    rewrite(adapter, lambda tensors: tensors.update({name: each.bfloat16() for name, each in tensors.items()}))
    found = loaded(read_adapter(adapter, targets, PAGE))
    assert {each.up.dtype for matrices in found.linears.values() for each in matrices} == {torch.bfloat16}


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{Q0}.lora_B.weight"), "10 of 11 tensors fit the model; .*lora_A.weight has no counterpart"),
        (lambda t: t.update(extra=torch.ones(2)), "12 of 13 tensors fit the model; the tensor extra is unknown"),
        (lambda t: t.update({f"{Q0}.lora_A.weight": torch.ones(4, 31)}), "q_proj of the model has 32 inputs"),
        (lambda t: t.update({f"{Q0}.lora_B.weight": torch.ones(32, 5)}), "32 inputs and 32 outputs"),
        (lambda t: t.update({f"{Q0}.lora_A.weight": torch.full((4, 32), torch.nan)}), "not finite"),
        (lambda t: t.update({f"{Q0}.lora_B.weight": torch.full((32, 4), torch.inf)}), "not finite"),
        (lambda t: t.update({f"{Q0}.lora_A.weight": torch.ones(4, 32, dtype=torch.int8)}), "of type int8"),
        (
            lambda t: t.update({f"{Q0}.lora_A.weight": torch.ones(2, 32), f"{Q0}.lora_B.weight": torch.ones(32, 2)}),
            "is of rank 2, but adapter_config.json says 4",
        ),
        (
            lambda t: t.update({name.replace("layers.0", "layers.9"): t.pop(name) for name in list(t)}),
            "4 of 6 tensors|layers.9.self_attn.q_proj that an adapter can change",
        ),
        (lambda t: t.clear(), "0 of 0 tensors fit the model"),
    ],
    ids=["half", "unknown", "inputs", "outputs", "nan", "infinite", "integers", "rank", "no such layer", "empty"],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    adapter: Path, targets: LoraTargets, change: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    rewrite(adapter, change)
    with pytest.raises(AdapterError, match=message):
        read_adapter(adapter, targets, PAGE)


def test_an_adapter_of_another_model_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = lora_targets(load_trunk(make_checkpoint("mixtral", tmp_path / "other"), torch.float32))
    rewrite(adapter, lambda t: t.update({name: each.repeat(2, 2) for name, each in t.items()}))
    change_config(adapter, r=8)
    with pytest.raises(AdapterError, match=r"0 of 12 tensors fit the model; .* have the shapes"):
        read_adapter(adapter, other, PAGE)


@pytest.mark.parametrize(
    ("ends", "shapes"),
    [
        ((".lora_A.weight", ".lora_B.weight"), ((4, 128), (32, 4))),
        ((".lora_A.weight", ".lora_B.weight"), ((4, 128, 3), (32, 4, 1))),
        ((".lora_embedding_A", ".lora_embedding_B"), ((4, 128), (32, 4))),
    ],
    ids=["matrices", "convolution", "embedding"],
)
def test_a_target_that_is_no_linear_layer_is_refused_with_the_reason(
    adapter: Path, targets: LoraTargets, ends: tuple[str, str], shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    added = {f"model.embed_tokens{end}": torch.ones(shape) for end, shape in zip(ends, shapes, strict=True)}
    rewrite(adapter, lambda tensors: tensors.update(added))
    with pytest.raises(
        AdapterError,
        match=r"12 of 14 .*; it can't change model.embed_tokens, because adapters of layers of type Embedding are not "
        r"supported; train the adapter without it, or merge it$",
    ):
        read_adapter(adapter, targets, PAGE)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 0}, "'r' is 0; ranks from 1 to 1024"),
        ({"r": 100_000}, "'r' is 100000; ranks from 1 to 1024"),
        ({"rank_pattern": {"q_proj": 0}}, "'rank_pattern.q_proj' is 0"),
        ({"rank_pattern": {"(": 4}}, "'rank_pattern' has the pattern '\\(', which is no regular expression"),
        ({"rank_pattern": [1]}, "'rank_pattern' must be an object"),
        ({"alpha_pattern": {"q_proj(?=x)": 4}}, r"'alpha_pattern' has the pattern 'q_proj.*look-around"),
        ({"lora_alpha": "a"}, "'lora_alpha' is 'a'; it must be a number"),
        ({"peft_type": "LOHA"}, "'peft_type' is 'LOHA'"),
        ({"use_dora": True}, "'use_dora' is set, but DoRA"),
        ({"use_miracle": True}, "'use_miracle' is set, which this server does not know"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save' is set"),
        ({"trainable_token_indices": [1]}, "'trainable_token_indices' is set"),
        ({"bias": "all"}, "'bias' is 'all'"),
        ({"init_lora_weights": "pissa"}, "changes the base weights"),
    ],
)
def test_settings_that_are_not_supported_are_refused_by_name(
    adapter: Path, targets: LoraTargets, values: dict[str, Any], message: str
) -> None:
    change_config(adapter, **values)
    with pytest.raises(AdapterError, match=message):
        read_adapter(adapter, targets, PAGE)


def test_a_damaged_configuration_is_refused(adapter: Path, targets: LoraTargets) -> None:
    (adapter / "adapter_config.json").write_text("[1")
    with pytest.raises(AdapterError, match=r"adapter_config.json can't be read"):
        read_adapter(adapter, targets, PAGE)


def test_a_pickle_is_refused_and_never_opened(adapter: Path, targets: LoraTargets) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return pytest.fail, ("the pickle was opened",)

    (adapter / WEIGHTS).unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(AdapterError, match=r"pickled weights alone \(adapter_model.bin\), which are never opened"):
        read_adapter(adapter, targets, PAGE)


def test_a_file_that_was_cut_short_is_refused(adapter: Path, targets: LoraTargets) -> None:
    raw = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(raw[:-100])
    with pytest.raises(AdapterError, match="cut short"):
        read_adapter(adapter, targets, PAGE)


def test_a_file_that_changes_while_it_is_read_is_refused(
    adapter: Path, targets: LoraTargets, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touch_and_read(source: Any) -> torch.Tensor:
        os.utime(adapter / WEIGHTS, ns=(1, 1))
        return read_tensor(source)

    monkeypatch.setattr("server.model.lora.peft_files.read_tensor", touch_and_read)
    with pytest.raises(AdapterError, match="changed while it was read"):
        read_adapter(adapter, targets, PAGE)


def test_a_page_whose_bytes_have_changed_since_is_refused(adapter: Path, targets: LoraTargets) -> None:
    recipe = read_adapter(adapter, targets, PAGE).recipes[0]["page"]
    tensors = [read_tensor(source) for source in recipe.sources]
    tensors[0][0, 0] += 1
    assert recipe.assemble is not None
    with pytest.raises(AdapterError, match="has changed since the adapter was loaded; load it again"):
        recipe.assemble(tensors)


def test_a_matrix_that_is_larger_than_a_page_is_refused(adapter: Path, targets: LoraTargets) -> None:
    with pytest.raises(AdapterError, match="does not fit into a page of 256; use a lower rank than 4"):
        read_adapter(adapter, targets, 256)


def test_an_adapter_without_files_is_refused(tmp_path: Path, targets: LoraTargets) -> None:
    with pytest.raises(AdapterError, match="there is no folder"):
        read_adapter(tmp_path / "none", targets, PAGE)
    with pytest.raises(AdapterError, match=r"has no adapter_config.json"):
        read_adapter(tmp_path, targets, PAGE)
    (tmp_path / "adapter_config.json").write_text(json.dumps({}))
    with pytest.raises(AdapterError, match=r"has no adapter_model.safetensors"):
        read_adapter(tmp_path, targets, PAGE)


@pytest.mark.parametrize("path", ["../secret", "inner/../../secret", "/etc", "link", "none", "a\0b"])
def test_a_path_outside_the_root_is_refused(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(AdapterError):
        locate(path, root)


def test_paths_within_the_root_are_relative_or_absolute(tmp_path: Path) -> None:
    (tmp_path / "law").mkdir()
    assert locate("law", tmp_path) == locate(str(tmp_path / "law"), tmp_path) == (tmp_path / "law").resolve()


def test_a_file_that_is_a_link_out_of_the_root_is_refused(adapter: Path, targets: LoraTargets, tmp_path: Path) -> None:
    shutil.move(adapter / WEIGHTS, tmp_path / "elsewhere")
    (adapter / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    assert read_adapter(adapter, targets, PAGE).ranks == [4]  # a cache of the hub is made of links
    with pytest.raises(AdapterError, match="is a link out of"):
        read_adapter(adapter, targets, PAGE, adapter)

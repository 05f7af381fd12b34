"""Published widths run natively, as close to float32 as the formats' arithmetic allows, whatever the weights are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from server.kernels.native.available import availability
from server.model.checkpoint.checkpoint import Checkpoint
from tests.full_width.comparison import WITHOUT_CACHE, run_modules, run_natively
from tests.full_width.gguf_files import file_checkpoint
from tests.full_width.models import folder_checkpoint
from tests.full_width.published import PUBLISHED, SMALL, Published
from tests.models_page import PAGE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built"),
]
FLOAT32_ERROR = 1e-4  # of how much logits vary; seen: 2e-5
LAYER_ROUNDING = 2.0**-8  # of a layer in bfloat16, which rounds its input and its results by 2 ** -9
OF_MODULES = 1.5  # the modules' own distance from float32 in bfloat16
OF_MODULES_IN_INT8 = 3.0  # with GGUF's types the kernels round rows to int8 in groups of 32; modules to bfloat16

CASES = [
    pytest.param(name, form, id=f"{name} {form}", marks=pytest.mark.nightly)
    for name, published in PUBLISHED.items()
    if published.model_type not in WITHOUT_CACHE  # whose modules ask routers more often than once a layer
    for form in (*published.formats, *published.files)
] + [pytest.param("small", form, id=f"small {form}") for form in (*SMALL.formats, *SMALL.files)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_size_is_in_docs_models(name: str) -> None:
    assert f"| {name} {PUBLISHED[name]}" in PAGE.read_text("utf-8").splitlines()


def checkpoint_of(published: Published, form: str, folder: Path) -> Checkpoint:
    config = published.make_config()
    if form in published.files:
        return file_checkpoint(config, published.architecture, form, folder)
    return folder_checkpoint(config, form, folder)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_layers_are_native_and_as_close_to_float32_as_modules(name: str, form: str, tmp_path: Path) -> None:
    published = PUBLISHED.get(name, SMALL)
    checkpoint = checkpoint_of(published, form, tmp_path)
    native = run_natively(checkpoint, torch.bfloat16)
    assert native.program.is_native, native.program.describe()
    reference = run_modules(checkpoint, torch.float32, native.choices)
    modules = run_modules(checkpoint, torch.bfloat16, native.choices)
    own, error = float(modules.error(reference).median()), float(native.error(reference).median())
    factor = OF_MODULES_IN_INT8 if form in published.files else OF_MODULES
    assert error < max(factor * own, len(native.program.layers) * LAYER_ROUNDING), f"{error:.1e}, modules {own:.1e}"


@pytest.mark.parametrize(("name", "form"), CASES)
def test_layers_in_float32_choose_and_compute_what_modules_do(name: str, form: str, tmp_path: Path) -> None:
    published = PUBLISHED.get(name, SMALL).without_dense_layers()  # which need more than 8 GiB in float32
    checkpoint = checkpoint_of(published, form, tmp_path)
    native = run_natively(checkpoint, torch.float32)
    reference = run_modules(checkpoint, torch.float32, native.choices)
    assert (native.program.is_native, reference.regret) == (True, pytest.approx(0, abs=1e-3))
    assert float(native.error(reference).max()) < FLOAT32_ERROR

"""Published formats: matrices are bit-exact, and products equal those with the dequantised matrix."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from server.kernels.batch_invariant import batch_invariant
from server.kernels.format_table import format_of
from server.kernels.formats import chunked, fp4, fp8, group_int4, group_int8, lookup4
from server.kernels.formats.group_int4 import repack_int4

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.01, torch.float16: 0.002}
Tensors = dict[str, torch.Tensor]


def some(shape: tuple[int, ...], most: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.randint(0, most, shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def scales(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 0.01 + 0.001


def words(codes: torch.Tensor) -> torch.Tensor:
    """Codes ``(in, out)`` as int32 ``(in / 8, out)``, eight consecutive inputs from the lowest bits."""
    shifts = torch.arange(0, 32, 4).view(1, 8, 1)
    return (codes.long().view(-1, 8, codes.shape[1]) << shifts).sum(1).to(torch.int32)


def make_fp8(out_features: int, in_features: int) -> Tensors:
    codes = (
        some((out_features, in_features), 2, torch.uint8) << 7 | some((out_features, in_features), 120)
    ).contiguous()
    return {"w": codes.view(torch.float8_e4m3fn), "w_scale_inv": scales((out_features // 16, in_features // 32))}


def make_mxfp4(out_features: int, in_features: int) -> Tensors:
    shape = (out_features, in_features // 32)
    return {"w_blocks": some((*shape, 16), 256), "w_scales": 118 + some(shape, 4)}


def make_nvfp4(out_features: int, in_features: int) -> Tensors:
    shape = (out_features, in_features // 16)
    kept = (scales(shape) * 1000).to(torch.float8_e4m3fn)
    return {"w_blocks": some((*shape, 8), 256), "w_scales": kept, "w_divisor": torch.tensor([300.0])}


def make_lookup4(out_features: int, in_features: int) -> Tensors:
    shape = (out_features, in_features // 32)
    table = torch.linspace(-1, 1, 16).pow(3)
    return {"w_lookup": some((*shape, 16), 256), "w_lookup_scale": scales(shape), "w_lookup_table": table}


def make_int8(out_features: int, in_features: int) -> Tensors:
    shape = (out_features, in_features // 32)
    codes = some((out_features, in_features), 256).view(torch.int8)
    order = torch.randperm(in_features, generator=torch.Generator().manual_seed(2)).int()
    zero = some(shape, 256, torch.int16) - 128
    return {"w_codes": codes, "w_steps": scales(shape).half(), "w_zero": zero, "w_order": order}


def make_int4(
    out_features: int, in_features: int, dtype: torch.dtype = torch.float16, *, has_zero: bool = True
) -> Tensors:
    shape = (in_features // 32, out_features)
    values = repack_int4.scales(scales(shape).to(dtype), some(shape, 16) if has_zero else None, in_features, (32, 32))
    made = {
        "w": repack_int4.blocks_of_inputs(words(some((in_features, out_features), 16))),
        "w_scale": values,
        "w_rest": repack_int4.rest(values),
        "w_order": torch.randperm(in_features, generator=torch.Generator().manual_seed(2)).int(),
    }
    specs = repack_int4.specs(out_features, in_features, 32, dtype, has_zero=has_zero, has_order=True)
    return {f"w{suffix}": made[f"w{suffix}"].to(dtype) for suffix, (dtype, _) in specs.items()}


MADE = {
    "fp8": (fp8, make_fp8),
    "mxfp4": (fp4, make_mxfp4),
    "nvfp4": (fp4, make_nvfp4),
    "lookup4": (lookup4, make_lookup4),
    "int8": (group_int8, make_int8),
    "int4": (group_int4, make_int4),
}
EACH = pytest.mark.parametrize(("kernel", "make"), MADE.values(), ids=list(MADE))


@EACH
@pytest.mark.parametrize("shape", [(128, 256), (96, 64), (48, 32)])
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_products_equal_those_with_the_float_matrix(
    kernel: ModuleType, make: type[Tensors], shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "CHUNK_WEIGHTS", 1 << 12)
    tensors = make(*shape)
    matrix, bias = kernel.dequantise(tensors, "w"), torch.linspace(-1, 1, shape[0]).to(dtype)
    assert format_of(tensors, "w") is kernel
    for count in (1, 3, 16, 60):
        rows = torch.randn((count, shape[1]), generator=torch.Generator().manual_seed(count)).to(dtype)
        found, wanted = kernel.project(tensors, "w", rows, bias), rows.float() @ matrix.T + bias.float()
        assert found.dtype == dtype
        assert float((found.float() - wanted).norm() / wanted.norm()) < TOLERANCES[dtype]


@EACH
def test_a_row_gives_the_same_bits_in_any_batch_in_batch_invariant_mode(
    kernel: ModuleType, make: type[Tensors]
) -> None:
    tensors = make(128, 256)
    rows = torch.randn((60, 256), generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.inference_mode(), batch_invariant():
        together = kernel.project(tensors, "w", rows, None)
        alone = torch.cat([kernel.project(tensors, "w", row, None) for row in torch.split(rows, 1)])
    assert torch.equal(alone, together)


@pytest.mark.parametrize("scale", [2.0**-30, 0.0123, 1.0, 2.0**20])
def test_every_number_of_float8_equals_that_of_torch(scale: float) -> None:
    codes = torch.tensor([code for code in range(256) if code & 127 != 127], dtype=torch.uint8).view(2, 127)
    codes = torch.cat((codes, codes[:, :1]), 1).view(torch.float8_e4m3fn)
    found = fp8.dequantise({"w": codes, "w_scale_inv": torch.full((1, 1), scale)}, "w")
    assert torch.equal(found, codes.float() * scale)


def test_every_number_and_exponent_of_mxfp4_is_that_of_the_format() -> None:
    """A sign, two bits of exponent biased by 1 and one of fraction; scales are powers of two biased by 127."""
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(255, 1, 1)
    exponents = torch.arange(255, dtype=torch.uint8).view(255, 1).repeat(1, 16)
    found = fp4.dequantise({"w_blocks": blocks, "w_scales": exponents}, "w")
    numbers = []
    for code in range(16):
        sign, exponent, fraction = code >> 3, code >> 1 & 3, code & 1
        size = (1 + fraction / 2) * 2.0 ** (exponent - 1) if exponent else fraction / 2
        numbers.append(-size if sign else size)
    row = torch.tensor([number for byte in range(256) for number in (numbers[byte & 15], numbers[byte >> 4])])
    wanted = row.double() * (torch.arange(255).double() - 127).exp2().unsqueeze(1)
    assert torch.equal(found, wanted.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("has_zero", [True, False])
def test_repacked_codes_lose_nothing(dtype: torch.dtype, has_zero: bool) -> None:
    """Except the last bit of a float32, if scales are float32."""
    out_features, in_features = 96, 64
    tensors = make_int4(out_features, in_features, dtype, has_zero=has_zero)
    codes, scale = some((in_features, out_features), 16).float(), scales((2, out_features)).to(dtype).float()
    zero = some((2, out_features), 16).float() if has_zero else torch.tensor(8.0)
    columns = (codes - (zero.repeat_interleave(32, 0) if has_zero else zero)) * scale.repeat_interleave(32, 0)
    wanted = torch.empty(out_features, in_features).index_copy_(1, tensors["w_order"].long(), columns.T.contiguous())
    found = group_int4.dequantise(tensors, "w")
    assert torch.allclose(found, wanted, rtol=0, atol=1e-7) if dtype == torch.float32 else torch.equal(found, wanted)


def test_the_fused_product_has_the_bits_of_float16_scales_that_bfloat16_lacks() -> None:
    """The scales of two groups are equal in bfloat16, and their products cancel except for the difference."""
    scale = torch.ones(2, 64)
    scale[0] += 2.0**-9
    values = repack_int4.scales(scale.half(), None, 256, (128, 128))
    codes = torch.full((256, 64), 12, dtype=torch.uint8)
    tensors = {
        "w": repack_int4.blocks_of_inputs(words(codes)),
        "w_scale": values.bfloat16(),
        "w_rest": repack_int4.rest(values).bfloat16(),
    }
    row = torch.ones(1, 256).bfloat16()
    row[0, 128:] = -1
    assert torch.equal(group_int4.project(tensors, "w", row, None), torch.full((1, 64), 128 * 4 * 2.0**-9).bfloat16())

"""Descriptions whose counts do not fit each other never reach the kernels."""

from __future__ import annotations

from ctypes import addressof, c_int32
from typing import Any

import pytest

from server.kernels.native.available import availability
from server.kernels.native.library import impossible
from server.kernels.native.structures.experts import ExpertShape, Gate
from server.kernels.native.structures.layers import (
    FeedForwardKind,
    LayerSpec,
    Mlp,
    Norm,
    NormKind,
    Router,
    RouterKind,
    RouterMlp,
)
from server.kernels.native.structures.matrices import Format, Matrix
from server.kernels.native.structures.mixers import (
    CompressedAttention,
    Compressor,
    Convolution,
    GatedDeltaNet,
    GroupedAttention,
    HeadMixing,
    MixerKind,
    RelativeBiases,
    RopeKind,
)

HIDDEN, EXPERTS, SLOT = 64, 16, 1 << 16

pytestmark = pytest.mark.skipif(not availability().runnable, reason="the native kernels were not built")


def matrix(**fields: Any) -> Matrix:
    known = {"format": Format.INT8, "outputs": 32, "inputs": HIDDEN, "row_block": 1, "column_block": 16, "block": 32}
    return Matrix(**(known | {"data": 64, "scales": 64} | fields))


@pytest.mark.parametrize("kind", [Format.INT8, Format.FP8, Format.FP4, Format.INT4, Format.MXFP4, Format.Q8])
def test_matrices_as_checkpoints_have_them_are_possible(kind: Format) -> None:
    assert impossible("greenroom_check_matrix", matrix(format=kind)) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"outputs": 0},
        {"inputs": -1},
        {"inputs": 2**40},
        {"format": 99},
        {"format": Format.E8M0},
        {"is_transposed": 1},
        {"column_block": 0},
        {"column_block": 8},
        {"column_block": -16},
        {"row_block": 0},
        {"scale_format": Format.Q8},
        {"format": Format.FP4, "inputs": 63},
        {"format": Format.FP4, "zeros": 64},
        {"format": Format.LOOKUP4},
        {"format": Format.LOOKUP4, "zeros": 64, "inputs": 63},
        {"format": Format.MXFP4, "inputs": 48},
        {"format": Format.Q4_0, "inputs": 48},
        {"format": Format.Q4_K, "inputs": 288},
        {"format": Format.INT4, "block": 0},
        {"format": Format.INT4, "block": 48},
        {"format": Format.INT4, "column_block": 0},
        {"format": Format.INT4, "scale_format": Format.FLOAT16},
    ],
)
def test_impossible_matrices_are_refused(fields: dict[str, Any]) -> None:
    assert impossible("greenroom_check_matrix", matrix(**fields)) is not None


def router(**fields: Any) -> Router:
    own = Matrix(format=Format.FLOAT32, outputs=EXPERTS, inputs=HIDDEN, data=64)
    return Router(
        **({"matrix": own, "kind": RouterKind.SIGMOID, "top_k": 4, "num_groups": 4, "top_groups": 2} | fields)
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 0},
        {"top_k": 17},
        {"top_k": 9},  # more than two groups have
        {"num_groups": 0},
        {"num_groups": -4},
        {"num_groups": 3},
        {"num_groups": 16},  # a group is chosen by its two best
        {"num_groups": 2**31 - 1},
        {"top_groups": 0},
        {"top_groups": 5},
        {"kind": 6},
        {"table": 64, "table_rows": 0},
        {"num_shared": -1},
        {"num_shared": 8},  # whose scores are not in the sum that weights are divided by
        {"num_shared": 8, "is_normalised": 1, "num_groups": 1, "top_k": 9},
        {"num_shared": 8, "is_normalised": 1, "num_groups": 1, "kind": RouterKind.SOFTMAX_FIRST},
        {"num_skips": -1, "num_groups": 1, "kind": RouterKind.SOFTMAX_FIRST},
        {"num_skips": EXPERTS, "num_groups": 1, "kind": RouterKind.SOFTMAX_FIRST},
        {"num_skips": 1},  # of a group
        {"num_skips": 1, "num_groups": 1},
    ],
)
def test_impossible_routers_are_refused(fields: dict[str, Any]) -> None:
    assert impossible("greenroom_check_router", router(), HIDDEN) is None
    assert impossible("greenroom_check_router", router(**fields), HIDDEN) is not None


@pytest.mark.parametrize(("expert", "is_possible"), [(EXPERTS - 1, True), (EXPERTS, False), (-1, False)])
def test_a_router_with_experts_in_its_table_that_do_not_exist_is_refused(expert: int, is_possible: bool) -> None:
    table = (c_int32 * 8)(0, 1, 2, 3, 4, 5, 6, expert)
    found = impossible("greenroom_check_router", router(table=addressof(table), table_rows=2), HIDDEN)
    assert (found is None) == is_possible


def test_a_router_of_other_hidden_states_is_refused() -> None:
    assert impossible("greenroom_check_router", router(), HIDDEN + 1) is not None


def experts(first: Matrix | None = None, second: Matrix | None = None, **fields: Any) -> ExpertShape:
    parts = (Matrix * 2)(first or matrix(data=0, scales=4096))
    down = second or matrix(outputs=HIDDEN, inputs=16, data=8192, scales=16384)
    known = {"first": parts, "second": down, "first_bias": -1, "second_bias": -1, "num_parts": 1}
    return ExpertShape(**(known | {"gate": Gate(has_gate=1)} | fields))


@pytest.mark.parametrize(
    "shape",
    [
        experts(matrix(data=SLOT - 32 * HIDDEN + 4, scales=0)),
        experts(matrix(data=0, scales=SLOT)),
        experts(matrix(data=-4 & (2**64 - 1), scales=4096)),
        experts(matrix(data=2, scales=4096)),  # not aligned
        experts(matrix(data=0, scales=4096, zeros=SLOT - 4)),
        experts(matrix(data=0, scales=4096, order=SLOT - 4)),
        experts(matrix(data=0, scales=4096, inputs=32)),
        experts(second=matrix(outputs=HIDDEN, inputs=32, data=8192, scales=16384)),
        experts(second=matrix(outputs=32, inputs=16, data=8192, scales=16384)),
        experts(first_bias=SLOT - 4),
        experts(second_bias=-2),
        experts(num_parts=0),
        experts(num_parts=3),
        experts(gate=Gate(has_gate=0)),
        experts(gate=Gate(activation=7, has_gate=1)),
    ],
)
def test_experts_that_do_not_fit_their_slot_or_each_other_are_refused(shape: ExpertShape) -> None:
    assert impossible("greenroom_check_experts", experts(), HIDDEN, SLOT) is None
    assert impossible("greenroom_check_experts", shape, HIDDEN, SLOT) is not None


def compressed_attention() -> CompressedAttention:
    def projection(outputs: int, inputs: int) -> Matrix:
        return Matrix(format=Format.FLOAT32, outputs=outputs, inputs=inputs, data=64)

    own = CompressedAttention(
        query_down=projection(16, HIDDEN),
        query=projection(32, 16),
        key=projection(8, HIDDEN),
        groups=projection(12, 16),
        output=projection(HIDDEN, 12),
        keys=Compressor(projection(16, HIDDEN), projection(16, HIDDEN), 64, 64, 8),
        index=Compressor(projection(12, HIDDEN), projection(12, HIDDEN), 64, 64, 6),
        index_query=projection(18, 16),
        index_weights=projection(3, HIDDEN),
    )
    own.query_norm = own.head_norm = own.key_norm = own.cache = 64
    own.cache_dim, own.heads, own.dim, own.rotary_dim, own.num_groups = 8 + 2 * 16 + 2 * 12, 4, 8, 4, 2
    own.window, own.period, own.top_k, own.index_heads, own.overlaps, own.chooses = 4, 2, 2, 3, 1, 1
    own.rope_kind = RopeKind.INTERLEAVED
    return own


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"heads": 0}, "heads or a window without a size"),
        ({"window": 0}, "heads or a window without a size"),
        ({"heads": 5}, "projections that don't fit its heads"),
        ({"dim": 16, "heads": 2}, "projections that don't fit its heads"),
        ({"num_groups": 3}, "groups that its results can't be divided into"),
        ({"num_groups": 4}, "groups that its results can't be divided into"),
        ({"groups__is_transposed": 1}, "groups that its results can't be divided into"),
        ({"head_norm": None}, "queries or keys without a norm"),
        ({"rope_kind": 3}, "an unknown kind of positions"),
        ({"rotary_dim": 10}, "rotary positions that are larger than a head"),
        ({"rotary_dim": 3}, "rotary positions that are larger than a head"),
        ({"rotary_dim": 8}, "rotary positions that don't fit an index key"),
        ({"period": 0}, "compressed keys of no tokens"),
        ({"period": 2**62}, "compressed keys of no tokens"),
        ({"overlaps": 0}, "compressed keys whose projections don't fit them"),
        ({"keys__dim": 4}, "compressed keys of another size"),
        ({"keys__bias": None}, "compressed keys without a bias or a norm"),
        ({"index__dim": 0}, "compressed keys without a size"),
        ({"top_k": 0}, "an index that chooses no keys"),
        ({"chooses": 0}, "an index that chooses no keys"),
        ({"index_heads": 2}, "an index whose projections don't fit its heads"),
        ({"keys__key__outputs": 0, "keys__gate__outputs": 0}, "an index without compressed keys"),
        ({"cache_dim": 63}, "a cache that its keys don't fit"),
        ({"cache_format": Format.INT8}, "a cache of no known format"),
    ],
)
def test_compressed_attention_that_does_not_fit_itself_is_refused(fields: dict[str, Any], reason: str | None) -> None:
    layer = LayerSpec(mixer_kind=MixerKind.COMPRESSED_ATTENTION, feed_forward_kind=FeedForwardKind.NONE)
    spec = compressed_attention()
    for name, value in fields.items():
        *parts, field = name.split("__")
        owner: Any = spec
        for part in parts:
            owner = getattr(owner, part)
        setattr(owner, field, value)
    layer.mixer = addressof(spec)
    assert impossible("greenroom_check_layer", layer, HIDDEN, 0) == reason


def convolved_layer(fields: dict[str, Any]) -> tuple[LayerSpec, list[Any]]:
    """Return a layer of attention with relative biases whose keys, values and results are convolved, and its parts.

    Args:
        fields: of a part, by its name and theirs.
    """

    def projection(outputs: int, inputs: int = HIDDEN) -> Matrix:
        return Matrix(format=Format.FLOAT32, outputs=outputs, inputs=inputs, data=64)

    parts: dict[str, Any] = {
        "relative": RelativeBiases(projection(4 * 3), 64, 3, 5),
        **{name: Convolution(weight=64, width=4, channels=16, dilation=1) for name in ("keys", "values")},
        **{name: Convolution(weight=64, width=4, channels=HIDDEN, dilation=1) for name in ("mixed", "inner")},
        "attention": GroupedAttention(
            query=projection(32), key=projection(16), value=projection(16), output=projection(HIDDEN, 32)
        ),
        "layer": LayerSpec(mixer_kind=MixerKind.GROUPED_ATTENTION, feed_forward_kind=FeedForwardKind.MLP),
        "mlp": Mlp(shape=experts(matrix(), matrix(outputs=HIDDEN, inputs=16)), weighting=Matrix(format=Format.FLOAT32)),
    }
    attention, layer = parts["attention"], parts["layer"]
    attention.heads, attention.kv_heads, attention.key_dim, attention.value_dim = 4, 2, 8, 8
    attention.gate = Matrix(format=Format.FLOAT32)
    layer.mixer, layer.feed_forward, layer.output_scale = addressof(attention), addressof(parts["mlp"]), 1.0
    attention.relative = addressof(parts["relative"])
    attention.key_convolution, attention.value_convolution = addressof(parts["keys"]), addressof(parts["values"])
    layer.mixer_convolution, layer.inner_convolution = addressof(parts["mixed"]), addressof(parts["inner"])
    for name, value in fields.items():
        part, _, field = name.partition("__")
        setattr(parts[part], field, value)
    return layer, [*parts.values()]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"relative__num_profiles": 0}, "relative biases without profiles"),
        ({"relative__extent": -1}, "relative biases without profiles"),
        ({"relative__profiles": None}, "relative biases without profiles"),
        ({"relative__num_profiles": 4}, "relative biases of other heads"),
        ({"attention__looks_ahead": 1}, "relative biases of other keys than those before a token"),
        ({"attention__value_convolution": None}, "a convolution of its keys or its values alone"),
        ({"keys__channels": 8}, "convolutions that don't fit its keys and values"),
        ({"values__width": 0}, "a convolution of impossible size"),
        ({"layer__inner_convolution": None}, "a convolution of the results of one part alone"),
        ({"mixed__channels": 8}, "a convolution that doesn't fit its results"),
        ({"layer__output_scale": 2.0}, "convolved results that are added otherwise"),
        ({"layer__output_norm": Norm(64, None, 1e-6, NormKind.RMS)}, "results that are both normed and convolved"),
        ({"layer__feed_forward_kind": FeedForwardKind.NONE}, "a convolution of the results of no part"),
    ],
)
def test_biases_and_convolutions_that_do_not_fit_their_layer_are_refused(
    fields: dict[str, Any], reason: str | None
) -> None:
    layer, _parts = convolved_layer(fields)
    assert impossible("greenroom_check_layer", layer, HIDDEN, 0) == reason


def mixed_layer(fields: dict[str, Any]) -> tuple[LayerSpec, list[Any]]:
    """Return a layer of attention with mixed heads and no feed-forward part, and its parts; ``fields`` as above."""

    def projection(outputs: int, inputs: int = HIDDEN) -> Matrix:
        return Matrix(format=Format.FLOAT32, outputs=outputs, inputs=inputs, data=64)

    channels = Convolution(weight=64, bias=64, states=64, width=2, channels=48, dilation=1)
    parts: dict[str, Any] = {
        "mixing": HeadMixing(channels, projection(48, 3 * 8), bias=64, heads=4, kv_heads=2, taps=3),
        "values": Convolution(weight=64, width=2, channels=16, dilation=1),
        "attention": GroupedAttention(
            query=projection(32), key=projection(16), value=projection(8), delayed=projection(8), heads=4, kv_heads=2
        ),
        "layer": LayerSpec(mixer_kind=MixerKind.GROUPED_ATTENTION, feed_forward_kind=FeedForwardKind.NONE),
    }
    attention, layer = parts["attention"], parts["layer"]
    attention.output, attention.gate = projection(HIDDEN, 32), Matrix(format=Format.FLOAT32)
    attention.key_dim = attention.value_dim = 8
    layer.mixer = addressof(attention)
    attention.mixing, attention.value_convolution = addressof(parts["mixing"]), addressof(parts["values"])
    for name, value in fields.items():
        part, *path, field = name.split("__")
        owner = parts[part]
        for each in path:
            owner = getattr(owner, each)
        setattr(owner, field, value)
    return layer, [*parts.values()]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"attention__value_convolution": None}, "values of the token before without a convolution that takes them"),
        ({"attention__delayed__inputs": 8}, "values of the token before without a convolution that takes them"),
        ({"attention__delayed__outputs": 16}, "projections that don't fit its heads"),
        ({"attention__has_gates_in_query": 1}, "gates that don't fit its heads"),
        ({"mixing__heads": 0}, "mixed heads that are not its own"),
        ({"mixing__kv_heads": 3}, "mixed heads that are not its own"),
        ({"mixing__channels__channels": 56}, "mixed heads that are not its own"),
        ({"mixing__heads": 8, "mixing__channels__channels": 80}, "mixed heads that are not its own"),
        ({"mixing__channels__width": 0}, "a convolution of impossible size"),
        ({"mixing__channels__dilation": 2}, "convolutions of heads that don't fit these"),
        ({"mixing__taps": 2}, "convolutions of heads that don't fit these"),
        ({"mixing__taps": 2**40}, "convolutions of heads that don't fit these"),
        ({"mixing__bias": None}, "convolutions of heads that don't fit these"),
        ({"mixing__of_heads__is_transposed": 1}, "convolutions of heads in a format whose parts can't be read"),
    ],
)
def test_mixed_heads_that_do_not_fit_their_attention_are_refused(fields: dict[str, Any], reason: str | None) -> None:
    layer, _parts = mixed_layer(fields)
    assert impossible("greenroom_check_layer", layer, HIDDEN, 0) == reason


@pytest.mark.parametrize(
    ("name", "value"), [("down__inputs", 8), ("first__outputs", 8), ("second__inputs", 8), ("first_bias", None)]
)
def test_a_router_whose_mlp_does_not_fit_it_is_refused(name: str, value: int | None) -> None:
    width = 24
    own = [Matrix(format=Format.FLOAT32, outputs=width, inputs=size, data=64) for size in (HIDDEN, width, width)]
    mlp = RouterMlp(*own, 64, 64, 64, None, Norm(64, None, 1e-6, NormKind.RMS))
    matrix = Matrix(format=Format.FLOAT32, outputs=EXPERTS, inputs=width, data=64)
    given = router(matrix=matrix, mlp=addressof(mlp))
    assert impossible("greenroom_check_router", given, HIDDEN) is None
    part, _, field = name.partition("__")
    setattr(getattr(mlp, part) if field else mlp, field or part, value)
    assert impossible("greenroom_check_router", given, HIDDEN) is not None


def delta_net(**fields: Any) -> GatedDeltaNet:
    plain = {"format": Format.FLOAT32, "inputs": HIDDEN, "data": 64}
    own = GatedDeltaNet(decay=64, decay_bias=64, norm=64, key_heads=2, value_heads=4, key_dim=8, value_dim=8)
    own.convolution = Convolution(weight=64, width=4, channels=64, dilation=1)
    own.projections.num_inputs = 1
    own.projections.inputs[0] = Matrix(outputs=104, **plain)
    own.projections.output = Matrix(**(plain | {"outputs": HIDDEN, "inputs": 32}))
    for name, value in fields.items():
        part, _, field = name.rpartition("__")
        setattr(getattr(own, part) if part else own, field, value)
    return own


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"key_heads": 0}, "a number of heads that its keys can't be shared by"),
        ({"key_heads": 3}, "a number of heads that its keys can't be shared by"),
        ({"value_dim": 2**40}, "heads without a size"),
        ({"key_dim": 16}, "a convolution that doesn't fit its heads"),
        ({"norm": None}, "heads without decays or a norm"),
        ({"convolution__width": 17}, "a convolution of impossible size"),
        ({"convolution__dilation": 0}, "a convolution whose taps are impossibly far apart"),
        ({"convolution__weight": None}, "a convolution without weights"),
        ({"projections__num_inputs": 7}, "an impossible number of projections"),
        ({"projections__num_inputs": 0}, "an impossible number of projections"),
    ],
)
def test_impossible_recurrent_mixers_are_refused(fields: dict[str, Any], reason: str) -> None:
    mixer = delta_net(**fields)
    layer = LayerSpec(mixer=addressof(mixer), mixer_kind=MixerKind.GATED_DELTA_NET)
    assert impossible("greenroom_check_layer", layer, HIDDEN, SLOT) == reason


def test_two_projections_in_one_place_are_refused() -> None:
    places = (c_int32 * 104)(*range(103), 0)
    mixer = delta_net(projections__places=addressof(places))
    layer = LayerSpec(mixer=addressof(mixer), mixer_kind=MixerKind.GATED_DELTA_NET)
    assert impossible("greenroom_check_layer", layer, HIDDEN, SLOT) == "two projections in one place"

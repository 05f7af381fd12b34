"""Written by `src/interface.py` from the C++ headers named here, whose comments describe what stands here."""

from __future__ import annotations

from ctypes import POINTER, c_char_p, c_int, c_int64, c_void_p
from typing import Any

from server.kernels.native.structures.decode_run import DecodeRun
from server.kernels.native.structures.experts import Combination, ExpertBatch, ExpertShape
from server.kernels.native.structures.layers import HeadCall, LayerSpec, Router, StepCall
from server.kernels.native.structures.matrices import LinearCall, Matrix
from server.kernels.native.structures.sampling import SamplingCall

INTERFACE = "a8abd8641a50e0d8"
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {  # the types of their results and arguments
    "greenroom_interface": (c_char_p, []),
    "greenroom_level": (c_char_p, [c_char_p]),
    "greenroom_repack": (c_int, [c_int, c_void_p, c_int64, c_int64, c_void_p, c_void_p]),
    "greenroom_code_bfloat16": (c_int64, [c_void_p, c_int, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_int64]),
    "greenroom_quantise": (c_int, [c_int, c_void_p, c_int, c_int64, c_int64, c_void_p, c_void_p]),
    "greenroom_set_grid": (c_int, [c_int, c_void_p, c_int64]),
    "greenroom_open": (c_void_p, [c_int, c_char_p]),
    "greenroom_close": (None, [c_void_p]),
    "greenroom_linear": (c_int, [c_void_p, POINTER(LinearCall)]),
    "greenroom_experts": (c_int, [c_void_p, POINTER(ExpertShape), POINTER(ExpertBatch)]),
    "greenroom_combine": (c_int, [c_void_p, POINTER(Combination)]),
    "greenroom_begin_layer": (c_int, [c_void_p, POINTER(LayerSpec), POINTER(StepCall), c_int64]),
    "greenroom_finish_layer": (c_int, [c_void_p, POINTER(LayerSpec), POINTER(StepCall), c_int64, c_void_p]),
    "greenroom_chosen_experts": (
        c_int,
        [c_void_p, POINTER(LayerSpec), POINTER(StepCall), c_int64, c_void_p, c_void_p, c_int64, c_int],
    ),
    "greenroom_norm_input": (c_int, [c_void_p, POINTER(LayerSpec), POINTER(StepCall)]),
    "greenroom_layers": (c_int, [c_void_p, POINTER(LayerSpec), c_int64, POINTER(StepCall), c_int64, c_void_p]),
    "greenroom_head": (c_int, [c_void_p, POINTER(HeadCall)]),
    "greenroom_start_layers": (None, [c_void_p, POINTER(LayerSpec), c_int64, POINTER(StepCall), c_int64, c_void_p]),
    "greenroom_start_head": (None, [c_void_p, POINTER(HeadCall)]),
    "greenroom_join": (c_int, [c_void_p]),
    "greenroom_start_decodes": (None, [c_void_p, POINTER(DecodeRun), c_int64]),
    "greenroom_allow_decodes": (c_int, [c_void_p, c_int64]),
    "greenroom_await_decodes": (c_int, [c_void_p, c_int64]),
    "greenroom_end_decodes": (c_int, [c_void_p]),
    "greenroom_read_rows": (c_int, [c_void_p, POINTER(Matrix), c_void_p, c_int64, c_void_p]),
    "greenroom_sample": (c_int, [c_void_p, POINTER(SamplingCall)]),
    "greenroom_check_matrix": (c_char_p, [POINTER(Matrix)]),
    "greenroom_check_router": (c_char_p, [POINTER(Router), c_int64]),
    "greenroom_check_experts": (c_char_p, [POINTER(ExpertShape), c_int64, c_int64]),
    "greenroom_check_layer": (c_char_p, [POINTER(LayerSpec), c_int64, c_int64]),
}

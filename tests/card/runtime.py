"""Installs the card in this process: ``torch.cuda``, the runtime's calls, and memory that is allocated on it."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from expert_store.io import pinned_memory
from tests.card import graphs, tensors
from tests.card.counts import captures, count_sync, fails, lock, refuse
from tests.card.graphs import record
from tests.card.streams import (
    Event,
    Stream,
    current_index,
    current_stream,
    default_streams,
    index_of,
    local,
    touch_context,
)
from tests.card.tensors import SPOILT, CardTensor, aten, memory, on_card, run

OUT_OF_MEMORY, ALREADY_REGISTERED, NOT_REGISTERED = 2, 712, 713  # errors of the runtime
FACTORIES = (
    "arange", "arange.start", "arange.start_step", "eye", "eye.m", "full", "linspace", "logspace", "ones", "rand",
    "randint", "randint.low", "randn", "randperm", "scalar_tensor", "tril_indices", "triu_indices", "zeros",
)  # fmt: skip

_library = torch.library.Library("aten", "IMPL")


class Runtime:
    """The calls of CUDA's runtime that the project makes. A refused one leaves its error to the thread."""

    def __init__(self, pinned_limit: int | None):
        self.pinned: dict[int, int] = {}  # bytes by address
        self._limit = pinned_limit

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:  # noqa: N802
        del flags
        touch_context(current_index())
        with lock:
            if address in self.pinned:
                return self._refuse("part or all of the requested memory range is already mapped", ALREADY_REGISTERED)
            is_full = self._limit is not None and sum(self.pinned.values()) + nbytes > self._limit
            if fails("host register") or is_full:
                return self._refuse("out of memory", OUT_OF_MEMORY)
            self.pinned[address] = nbytes
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        with lock:
            if self.pinned.pop(address, None) is None:
                return self._refuse("pointer does not correspond to a registered memory region", NOT_REGISTERED)
        return 0

    def _refuse(self, message: str, code: int) -> int:
        local.error = message
        return code


class Properties:
    name, major, minor, multi_processor_count, warp_size = "a card of the CPU", 9, 0, 132, 32
    L2_cache_size, gcnArchName = 50 << 20, ""  # noqa: N815

    @property
    def total_memory(self) -> int:
        return memory.total_bytes


def install(num_devices: int = 1, memory_bytes: int = 8 << 30, pinned_limit: int | None = None) -> Runtime:
    """Give this process CUDA devices; returns their runtime. There is no way back."""
    _load_guard(num_devices)
    runtime, memory.total_bytes = Runtime(pinned_limit), memory_bytes
    default_streams[:] = [Stream(index) for index in range(num_devices)]
    _allocate_on_card()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.version.cuda = "13.0"

    def free_memory(device: Any = None) -> tuple[int, int]:
        return memory.total_bytes - memory.used(index_of(device)), memory.total_bytes

    def set_device(device: Any) -> None:
        local.index = index_of(device)

    def synchronize(device: Any = None) -> None:
        del device
        count_sync("synchronize")
        with lock:
            for stream in default_streams:
                stream.finish()

    def clear_error() -> None:
        local.error = None

    replaced: dict[str, Any] = {  # no function twice, which torch._dynamo refuses
        "_lazy_init": lambda *_, **__: None,
        "CUDAGraph": graphs.CUDAGraph,
        "Event": Event,
        "Stream": Stream,
        "cudart": lambda: runtime,
        "current_device": current_index,
        "current_stream": current_stream,
        "default_stream": lambda device=None: default_streams[index_of(device)],
        "device": _device,
        "device_count": lambda: num_devices,
        "empty_cache": lambda *_, **__: None,
        "graph_pool_handle": lambda: (0, 0),
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: Properties.name,
        "get_device_properties": lambda device=None: Properties(),
        "init": lambda *_, **__: None,
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "is_current_stream_capturing": lambda: bool(captures),
        "is_initialized": lambda: True,
        "manual_seed": lambda *_, **__: None,
        "manual_seed_all": lambda *_, **__: None,
        "max_memory_allocated": lambda device=None: memory.used(index_of(device)),
        "mem_get_info": free_memory,
        "memory_allocated": lambda device=None: memory.used(index_of(device)),
        "memory_reserved": lambda device=None: memory.used(index_of(device)),
        "reset_peak_memory_stats": lambda *_, **__: None,
        "set_device": set_device,
        "stream": _stream,
        "synchronize": synchronize,
    }
    for name, value in replaced.items():
        setattr(torch.cuda, name, value)
    if find_spec("triton") is not None:
        from tests.card import triton_kernels  # noqa: PLC0415  Triton may not be installed

        triton_kernels.install()
    pinned_memory.clear_error = clear_error  # there is no library to take it from
    torch.Tensor.pin_memory = _pin_memory  # type: ignore[method-assign, assignment]
    torch.Tensor.is_pinned = lambda self, device=None: False  # type: ignore[method-assign, assignment]
    torch.Tensor.record_stream = lambda self, stream: None  # type: ignore[method-assign, assignment]
    return runtime


def _pin_memory(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    del device
    refuse("pin_memory")
    if fails("allocation"):
        raise torch.AcceleratorError("CUDA error: out of memory")
    return tensor.clone()


@contextlib.contextmanager
def _device(device: Any) -> Iterator[None]:
    before = current_index()
    local.index = index_of(device)
    try:
        yield
    finally:
        local.index = before


@contextlib.contextmanager
def _stream(stream: Stream | None) -> Iterator[None]:
    if stream is None:
        yield
        return
    before = current_index()
    local.index = stream.device.index
    with stream:
        yield
    local.index = before


def _allocate_on_card() -> None:
    def empty(size: Any, *, dtype: Any = None, device: Any = None, memory_format: Any = None, **_: Any) -> CardTensor:
        index, dtype = index_of(device), dtype or torch.get_default_dtype()
        memory.check(size, dtype, index)
        layout = memory_format or torch.contiguous_format
        inner = torch.empty(size, dtype=dtype, memory_format=layout, device="cpu")
        if inner.numel():
            inner.untyped_storage().fill_(SPOILT)
        return on_card(inner, index)

    def empty_strided(size: Any, stride: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> CardTensor:
        index, dtype = index_of(device), dtype or torch.get_default_dtype()
        memory.check(size, dtype, index)
        return on_card(torch.empty_strided(size, stride, dtype=dtype, device="cpu"), index)

    _library.impl("empty.memory_format", empty, "CUDA")
    _library.impl("empty_strided", empty_strided, "CUDA")
    _library.impl(
        "copy_",
        lambda target, source, non_blocking=False: run(aten.copy_.default, (target, source, non_blocking), {}),
        "CUDA",
    )
    for name in FACTORIES:
        packet, _, overload = name.partition(".")
        _library.impl(name, _factory(getattr(getattr(aten, packet), overload or "default")), "CUDA")


def _factory(function: Any) -> Callable[..., CardTensor]:
    def make(*args: Any, device: Any = None, **kwargs: Any) -> CardTensor:
        kwargs.pop("pin_memory", None)
        index = index_of(device)
        tensors.launches[function.name().partition("::")[2]] += 1
        compute = partial(function, *args, device=torch.device("cpu"), **kwargs)
        inner = compute()
        record(lambda: [compute()], [inner])
        memory.check(inner.shape, inner.dtype, index)
        return on_card(inner, index)

    return make


def _load_guard(num_devices: int) -> None:
    """Compile the device guard, once for each build of torch, and load it."""
    source, root = Path(__file__).parent / "guard.cpp", Path(torch.__file__).parent
    digest = hashlib.sha256(source.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"greenroom_card_{digest}.so"
    if not library.exists():
        with tempfile.NamedTemporaryFile(dir=library.parent, suffix=".so", delete=False) as made:
            folders = [f"-I{root}/include", f"-L{root}/lib", f"-Wl,-rpath,{root}/lib"]
            options = ["-std=c++20", "-O1", "-shared", "-fPIC", *folders, "-lc10"]
            subprocess.run(["g++", str(source), *options, "-o", made.name], check=True)
        Path(made.name).rename(library)
    ctypes.CDLL(str(library)).card_set_devices(num_devices)

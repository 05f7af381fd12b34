"""Tensors of the card: wrappers of tensors of the CPU, whose operations are checked and counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache, partial
from typing import Any, Self

import torch

from tests.card.counts import captures, count_sync, fails, launch_places, launches, lock, place, refuse
from tests.card.graphs import record
from tests.card.memory import Memory
from tests.card.streams import Stream, current_stream, default_streams, index_of, local

aten = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default
BEYOND_HOST = 1 << 56  # added to addresses, so that the host can't read there
SPOILT = 255  # each byte of memory that nothing has been written to; NaN in any format of numbers

TAKES_HOST_INDICES = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._unsafe_index.Tensor}
TAKES_BOTH = {aten.copy_.default, aten._to_copy.default, aten.set_.source_Tensor} | TAKES_HOST_INDICES
WAITS = {  # operations whose result or its shape is read by the host
    "_local_scalar_dense", "_unique2", "bincount", "equal", "histc", "is_nonzero", "item", "masked_select", "nonzero",
    "unique_consecutive", "unique_dim",
}  # fmt: skip
ALLOCATES = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}  # and launch nothing
ONLY_ON_CPU = ("_scaled_dot_product_flash_attention_for_cpu", "_weight_int4pack_mm_for_cpu", "_weight_int8pack_mm")

memory = Memory(8 << 30)


class CardTensor(torch.Tensor):
    """A tensor in the card's memory."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, index: int = 0) -> Self:
        is_inference = inner.is_inference()
        same = is_inference == torch.is_inference_mode_enabled()
        with nullcontext() if same else torch.inference_mode(is_inference):  # a view of a normal tensor is a normal one
            made: Self = torch.Tensor._make_wrapper_subclass(
                cls,
                inner.shape,
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=torch.device("cuda", index),
            )
        return made

    def __init__(self, inner: torch.Tensor, index: int = 0):
        del index
        self.inner = inner

    def __repr__(self, **_: Any) -> str:
        return f"CardTensor({self.inner!r}, {self.device})"

    def __deepcopy__(self, memo: Any) -> CardTensor:
        copy = on_card(self.inner.clone(), self.device.index)
        copy._is_param = getattr(self, "_is_param", False)  # by which torch knows a parameter
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError("a tensor of the card can't be pickled")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(not issubclass(cls, each) for each in types):  # another subclass has to take part
            return NotImplemented
        if function is torch.nn.functional.scaled_dot_product_attention:
            return run(SDPA, args, kwargs or {})
        if function is torch._has_compatible_shallow_copy_type:
            return False
        if function is torch.Tensor.data_ptr:
            return args[0].inner.data_ptr() + BEYOND_HOST
        if function is torch.Tensor.tolist:
            return args[0].cpu().tolist()
        if function is torch.Tensor.numpy:
            raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu()")
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


def on_card(inner: torch.Tensor, index: int, *, is_view: bool = False) -> CardTensor:
    if not is_view:
        memory.add(inner, index)
    return CardTensor(inner, index)


def run(function: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation at least one of whose tensors is the card's, or whose result is to be."""
    if function is not SDPA and _is_composite(function):  # in inference mode they come here whole
        result = function.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
    leaves = [*_leaves(args), *_leaves(kwargs)]
    tensors = [leaf for leaf in leaves if isinstance(leaf, CardTensor)]
    _check_devices(function, args, leaves)
    name = function.name().partition("::")[2].partition(".")[0]
    with lock:
        stream = current_stream(tensors[0].device if tensors else None)
        if function is aten.copy_.default and _is_upload(args):
            return _upload(args, kwargs, stream)
        if function is aten.copy_.default and _is_late_download(args, kwargs, stream):
            return _download(args, stream)
        return _run_now(function, name, args, kwargs, leaves, stream)


def _run_now(function: Any, name: str, args: Any, kwargs: Any, leaves: list[Any], stream: Stream) -> Any:
    tensors = [leaf for leaf in leaves if isinstance(leaf, CardTensor)]
    is_view = function.is_view or name in {"_unsafe_view", "alias", "detach", "lift_fresh"}
    index: int | None = tensors[0].device.index if tensors else None
    if kwargs.get("device") is not None:
        asked = torch.device(kwargs["device"])
        index = index_of(asked) if asked.type == "cuda" else None
        kwargs = {**kwargs, "device": torch.device("cpu")}
    makes_memory = index is not None and not is_view and not name.endswith("_") and name not in WAITS | {"_to_copy"}
    if makes_memory and fails("allocation"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate the result of an operation.")
    if not is_view and name not in ALLOCATES:
        launch(name, stream, has_kernel=bool(tensors) and name not in {"_local_scalar_dense", "_to_copy", "copy_"})
        number = stream.begin()
        if _waits(function, name, args, kwargs, index):
            count_sync(name)
            stream.finish()
        written = _written(function, args, kwargs)
        writes = [(tensor.inner, id(tensor) in written) for tensor in tensors]
        for inner, is_write in writes:
            memory.access(inner, stream, number, is_write=is_write)
    by_inner = {id(tensor.inner): tensor for tensor in tensors}
    inner_args, inner_kwargs = _map(_inner, tuple(args)), _map(_inner, kwargs)
    compute = partial(_KERNELS.get(function, function), *inner_args, **inner_kwargs)
    result = compute()
    if captures and not is_view and name not in ALLOCATES:
        own = {id(leaf) for leaf in _leaves((inner_args, inner_kwargs))}
        record(partial(_again, compute, own, writes), _new_tensors(result, own))
    if function is aten.copy_.default:
        return args[0]
    given = set(map(id, leaves))

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or id(value) in given or index is None:
            return value
        known = by_inner.get(id(value))
        return on_card(value, index, is_view=is_view) if known is None else known

    return _map(wrap, result)


def _again(compute: Callable[[], Any], given: set[int], writes: list[tuple[torch.Tensor, bool]]) -> list[torch.Tensor]:
    """Run an operation of a graph; return what it made."""
    stream = current_stream()
    number = stream.begin()
    for inner, is_write in writes:
        memory.access(inner, stream, number, is_write=is_write)
    return _new_tensors(compute(), given)


def _new_tensors(result: Any, given: set[int]) -> list[torch.Tensor]:
    return [leaf for leaf in _leaves(result) if isinstance(leaf, torch.Tensor) and id(leaf) not in given]


def launch(name: str, stream: Stream, *, has_kernel: bool) -> None:
    """Count a launch; raise what CUDA raises at one after a failed call."""
    launches[name] += 1
    launch_places[place()] += 1
    error = getattr(local, "error", None)
    if has_kernel and error is not None:  # a launch is checked, and finds what an earlier call has left
        local.error = None
        raise torch.AcceleratorError(f"CUDA error: {error} (left by an earlier call of this thread)")


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what sequences and mappings of arguments hold; torch's own way takes most of an operation's time."""
    if isinstance(value, tuple | list):
        for each in value:
            if isinstance(each, tuple | list | dict):
                yield from _leaves(each)
            else:
                yield each
    elif isinstance(value, dict):
        yield from _leaves([*value.values()])
    else:
        yield value


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    """Return the same sequences and mappings with other leaves."""
    if isinstance(value, tuple | list):
        mapped = [_map(function, each) for each in value]
        return tuple(mapped) if isinstance(value, tuple) else mapped
    if isinstance(value, dict):
        return {name: _map(function, each) for name, each in value.items()}
    return function(value)


@cache
def _is_composite(function: Any) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd"))


@cache
def _has_kernel(function: Any) -> bool:
    """Return whether CUDA has an operation."""
    keys = ("CUDA", "CompositeExplicitAutograd", "CompositeImplicitAutograd")
    is_own = function.namespace in {"aten", "prims"}
    return is_own or any(torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), key) for key in keys)


def _check_devices(function: Any, args: Any, leaves: list[Any]) -> None:
    """Raise what CUDA raises for operands on several devices, or for an operation that it lacks."""
    if not _has_kernel(function) or function.name().partition("::")[2] in ONLY_ON_CPU:
        raise NotImplementedError(f"Could not run '{function.name()}' with arguments from the 'CUDA' backend")
    if function in TAKES_HOST_INDICES:
        if not isinstance(args[0], CardTensor):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        leaves = [args[0], *_leaves(args[2:])]
    if function in TAKES_BOTH - TAKES_HOST_INDICES:
        return
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    devices = {tensor.device for tensor in tensors if tensor.dim() or isinstance(tensor, CardTensor)}
    if len(devices) > 1:
        found = " and ".join(sorted(map(str, devices)))
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {found} (in {function})")


def _waits(function: Any, name: str, args: Any, kwargs: Any, index: int | None) -> bool:
    if name in {"_to_copy", "copy_"}:
        return index is None or not isinstance(args[0], CardTensor)
    if function in TAKES_HOST_INDICES:  # a mask is turned into indices, but where it is filled with a number
        masks = [isinstance(each, torch.Tensor) and each.dtype in {torch.bool, torch.uint8} for each in args[1]]
        return any(masks) and not (len(masks) == 1 and _is_number(args[2:]))
    has_counts = name == "repeat_interleave" and "Tensor" in function._overloadname
    return name in WAITS or (has_counts and kwargs.get("output_size") is None)


def _is_number(values: Any) -> bool:
    """Return whether a write by a mask has a number of the host, so that torch fills (``canDispatchToMaskedFill``)."""
    return bool(values) and not isinstance(values[0], CardTensor) and values[0].numel() == 1 and True not in values[1:]


def _written(function: Any, args: Any, kwargs: Any) -> set[int]:
    """Return the identities of the arguments that an operation writes."""
    found = [args[at] if at < len(args) else kwargs.get(name) for at, name in _written_places(function)]
    return set(map(id, found))


@cache
def _written_places(function: Any) -> list[tuple[int, str]]:
    """Return place and name of each argument that an operation writes."""
    specs = enumerate(function._schema.arguments)
    return [(at, spec.name) for at, spec in specs if spec.alias_info is not None and spec.alias_info.is_write]


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, CardTensor) else value


def _non_blocking(args: Any, kwargs: Any) -> bool:
    return bool(kwargs.get("non_blocking", args[2] if len(args) > 2 else False))


def _is_upload(args: Any) -> bool:
    return isinstance(args[0], CardTensor) and not isinstance(args[1], CardTensor)


def _is_late_download(args: Any, kwargs: Any, stream: Stream) -> bool:
    is_download = isinstance(args[1], CardTensor) and not isinstance(args[0], CardTensor)
    return is_download and stream not in default_streams and _non_blocking(args, kwargs)


def _upload(args: Any, kwargs: Any, stream: Stream) -> Any:
    """Copy from the host; late on a stream of its own."""
    target, source = args[0].inner, args[1]
    refuse("copy_ from the host")
    launch("copy_ from the host", stream, has_kernel=False)
    if stream in default_streams or not _non_blocking(args, kwargs):
        if not _non_blocking(args, kwargs) and source.dim():
            count_sync("copy_ from the host")
        memory.access(target, stream, stream.begin(), is_write=True)
        target.copy_(source)
        return args[0]
    memory.share(target)
    stream.catch_up()
    number = stream.begin_late(lambda: target.copy_(source))
    memory.access(target, stream, number, is_write=True)
    _spoil(target, stream, number)
    return args[0]


def _download(args: Any, stream: Stream) -> Any:
    """Copy to the host, late."""
    target, source = args[0], args[1].inner
    refuse("copy_ to the host")
    launch("copy_ to the host", stream, has_kernel=False)
    memory.share(source)
    stream.catch_up()
    number = stream.begin_late(lambda: target.copy_(source))
    memory.access(source, stream, number, is_write=False)
    return target


def _spoil(target: torch.Tensor, stream: Stream, number: int) -> None:
    """Fill the target of a late copy, once what comes before it in its stream is over: it may read the target."""
    stream.run_until(number - 1)
    if target.is_contiguous():
        target.view(torch.uint8).fill_(SPOILT)


def _efficient_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    compute_log_sumexp: bool,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[torch.Tensor, ...]:
    """Attend as CUDA's efficient attention does, and refuse what it refuses.

    Log-sum-exps are padded to a multiple of 32 queries.
    """
    del dropout
    plain = {torch.float32, torch.float16, torch.bfloat16}
    for each in (query, key, value):
        step = 4 if each.dtype == torch.float32 else 8
        if each.dim() != 4 or each.stride(-1) != 1 or each.dtype not in plain or each.dtype != query.dtype:
            raise RuntimeError(f"efficient attention: {each.shape} of {each.dtype} with strides {each.stride()}")
        if each.shape[-1] % step == 0 and any(stride % step for stride in each.stride()[:3]):
            raise RuntimeError(f"efficient attention: strides {each.stride()} are not aligned")
    if query.shape[:2] != key.shape[:2] or key.shape[:3] != value.shape[:3] or query.shape[-1] != key.shape[-1]:
        raise RuntimeError(f"efficient attention: shapes {query.shape}, {key.shape}, {value.shape}")
    scores = query.float() @ key.float().mT * (scale or 1 / math.sqrt(query.shape[-1]))
    if bias is not None:
        scores = scores + bias
    if is_causal:  # from the first query and key
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -math.inf)
    padded = -(-query.shape[2] // 32) * 32 if compute_log_sumexp else 0
    sums = torch.full((*query.shape[:2], padded), math.inf)
    if padded:
        sums[..., : query.shape[2]] = scores.logsumexp(-1)
    result = (scores.softmax(-1) @ value.float()).to(query.dtype)
    nothing = torch.zeros((), dtype=torch.int64)
    return result.transpose(1, 2).contiguous().transpose(1, 2), sums, nothing, nothing.clone()


def _multiply_as(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Multiply with a result of another type, which only CUDA can."""
    return left.to(dtype) @ right.to(dtype)


_KERNELS: dict[Any, Callable[..., Any]] = {
    aten._scaled_dot_product_efficient_attention.default: _efficient_attention,
    aten.mm.dtype: _multiply_as,
}

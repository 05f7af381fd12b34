"""The functions that run while CUDA graphs are captured, and what in them a capture does not permit.

The emulated card refuses it only where a test comes along; here all branches are read. ``CAPTURED`` has to name every
function that the card saw in a capture (``test_card.py``).
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping

READS = {"item", "tolist", "cpu", "numpy", "nonzero", "argwhere", "unique", "masked_select", "equal", "allclose"}
WAITS = {"synchronize", "query"}
ALLOCATES = {
    "arange", "empty", "empty_like", "full", "full_like", "new_empty", "new_full", "new_ones", "new_tensor",
    "new_zeros", "ones", "ones_like", "rand", "randn", "zeros", "zeros_like",
}  # fmt: skip
FROM_HOST = {"as_tensor", "from_numpy", "frombuffer", "pin_memory", "tensor", "upload", "upload_into"}
OF_SHAPE = {  # methods whose results are no tensors
    "chunk", "data_ptr", "dim", "element_size", "is_contiguous", "is_floating_point", "numel", "size", "split",
    "stride", "unbind",
}  # fmt: skip
NO_TENSOR = {"device", "dtype", "finfo", "Generator", "inference_mode", "is_tensor", "no_grad", "Size"}  # of torch
CONVERSIONS = {"bool", "float", "int", "list", "str", "tuple"}

CAPTURED: Mapping[str, Collection[str]] = {
    "expert_store/layout_tiers.py": ("LayoutTiers.arena",),
    "expert_store/step_lease.py": ("StepLease.arena",),
    "expert_store/store.py": ("ExpertStore.arena",),
    "expert_store/store_lock.py": ("StoreLock.__enter__", "StoreLock.settle"),
    "server/kernels/backend.py": ("Rooms.__init__", "Rooms.take"),
    "server/kernels/batch_invariant.py": ("is_batch_invariant",),
    "server/kernels/residual_stream.py": (
        "ResidualStream.__init__",
        "ResidualStream.__new__",
        "ResidualStream.__torch_function__",
        "ResidualStream.normed",
        "ResidualStream.whole",
        "_can_wait",
        "_wholes",
    ),
    "server/kernels/triton/backend.py": (
        "TritonBackend._layer",
        "TritonBackend.begin",
        "TritonBackend.run_by_table",
        "_FewRows._blocks",
        "_FewRows._empty_products",
        "_FewRows._launch_first",
        "_FewRows._launch_second",
        "_FewRows._multiply_down",
        "_FewRows.finish",
        "_Layer.__init__",
        "_Layer._codebook",
        "_Layer._own_choices",
        "_Layer.arena",
        "_Layer.choose",
        "_Layer.experts",
        "_Layer.finish",
        "_Layer.has_pending",
        "_Layer.pending_table",
        "_Layer.run_by_table",
        "_Layer.run_second",
        "_Layer.run_slots",
    ),
    "server/kernels/triton/decode_attention.py": ("PagedStep.attend", "PagedStep.write", "Tiles.of", "_with_rows"),
    "server/model/blocks/gated_delta_net/triton_step.py": ("GatedDelta.step", "delta_options"),
    "server/model/blocks/grouped_attention/triton_step.py": ("ProjectedHeads.prepare", "options_of"),
    "server/model/blocks/latent_attention/triton_step.py": (
        "ProjectedLatents.by_head",
        "ProjectedLatents.prepare",
        "options_of",
    ),
    "server/model/blocks/mamba2/triton_step.py": ("Mamba2.step", "mamba2_options"),
    "server/model/blocks/recurrent/triton_step.py": ("Convolution.options", "norm_options"),
    "server/model/blocks/short_convolution/triton_step.py": ("step_convolution",),
    "server/kernels/triton/rms_norm.py": ("PlainRmsNorm.__call__", "RmsNorm.__call__", "RmsNorm.add_and_norm"),
    "server/kernels/triton/router_choice.py": ("choose", "options_of"),
    "server/model/attention/decode_attention.py": (
        "DecodeAttention.attend",
        "DecodeAttention.prepare",
        "DecodeAttention.prepare_latents",
        "DecodeAttention.write",
        "_paged_keys",
    ),
    "server/model/attention/mla.py": (
        "LatentAttention.__init__",
        "LatentAttention.has_adapters",
        "LatentAttention.attend",
        "LatentAttention.expand",
        "LatentProjection.absorb",
        "LatentProjection.forward",
        "LatentProjection.placeholder",
        "LatentProjection.row",
        "LatentProjection.values",
        "LatentProjection.values_by_token",
        "attend_latents",
    ),
    "server/model/attention/rope.py": ("FixedAngles.__call__",),
    "server/model/attention/paged_attention.py": (
        "StepAttention.attend",
        "StepAttention.attend_latents",
        "StepAttention.attend_projected",
        "_GroupAttention.attend",
        "_GroupAttention.attend_latents",
        "_GroupAttention.attend_projected",
    ),
    "server/model/experts/replacements/jetmoe.py": (
        "PairedMoe.forward",
        "SharedKeysAttention._by_all",
        "SharedKeysAttention._sum_of_all",
        "SharedKeysAttention.forward",
        "_products",
    ),
    "server/model/experts/step_hold.py": ("StepHold.arena",),
    "server/model/experts/strategies/hits_first.py": ("HitsFirst.captured", "HitsFirst.run_layer"),
    "server/model/experts/strategies/slot_tables.py": ("SlotTables.of",),
    "server/model/experts/strategies/strategy.py": ("ExpertStrategy.run",),
    "server/model/experts/strategies/waitless.py": ("WaitlessExperts.gather", "WaitlessExperts.run_layer"),
    "server/model/modules/forward.py": (
        "Forward._call",
        "Forward._insert_images",
        "Forward._keep_hidden",
        "Forward.on_device",
    ),
    "server/kernels/triton/gated_activation.py": ("activate",),
    "server/model/blocks/cuda.py": ("CudaAttention.__call__", "CudaMixer.has_hooks", "is_pair"),
    "server/model/blocks/gated_delta_net/cuda.py": ("CudaGatedDeltaNet.step",),
    "server/model/blocks/grouped_attention/cuda.py": (
        "CudaGroupedAttention._project",
        "CudaGroupedAttention.project",
        "CudaGroupedAttention.run",
    ),
    "server/model/blocks/joined_linears.py": ("JoinedLinears.__call__", "JoinedLinears.has_hooks"),
    "server/model/blocks/latent_attention/cuda.py": ("CudaLatentAttention.project", "CudaLatentAttention.run"),
    "server/model/blocks/mamba2/cuda.py": ("CudaMamba2.step",),
    "server/model/blocks/recurrent/cuda.py": ("CudaRecurrentMixer.run",),
    "server/model/blocks/short_convolution/cuda.py": ("CudaShortConvolution.step",),
    "server/model/cuda_layers/mlps.py": ("CudaMlp.__call__",),
    "server/model/cuda_layers/residuals.py": ("_with_stream",),
    "server/model/cuda_layers/routers.py": ("CudaNormedRouter.__call__", "CudaRouter.__call__"),
    "server/model/hooks.py": ("_chosen", "_experts", "attention_function", "current_hooks", "is_choice", "use_hooks"),
    "server/model/recurrent/recurrent_modules.py": (
        "SplitForward.__call__",
        "SplitForward._fused_for",
        "SplitForward._run",
    ),
    "server/model/recurrent/rows.py": ("Rows.select", "join"),
    "server/model/recurrent/states.py": (
        "AttentionPassThrough.__getattr__",
        "AttentionPassThrough.update",
        "RecurrentBatch.size",
        "RecurrentCache.__init__",
        "RecurrentCache._get",
        "RecurrentCache.get_conv_state",
        "RecurrentCache.get_recurrent_state",
        "RecurrentCache.is_recording_past",
        "RecurrentCache.update_conv_state",
        "RecurrentCache.update_recurrent_state",
        "StateCache.has",
        "StateCache.read",
        "StateCache.tensor",
        "StateCache.write",
        "StepStates.batch_cache",
        "StepStates.collect",
        "StepStates.num_tokens",
        "StepStates.reader",
    ),
    "server/model/modules/step_graphs.py": ("_Capture.cut", "_Graph.run", "_StepGraph.run", "_capture"),
    "server/model/modules/steps.py": ("ModuleSteps._run_on_device", "_StepHooks.__init__"),
}

# What a function has that is right nonetheless. Memory comes from the pool that all graphs share, and is used until the
# end of the step alone; what comes from the host does so in branches of steps without graphs.
ALLOWED: Mapping[str, Collection[str]] = {
    "server/kernels/backend.py:Rooms.take": ["allocates by new_empty"],
    "server/kernels/triton/backend.py:_FewRows.finish": ["allocates by empty_like"],
    "server/kernels/triton/backend.py:_Layer.experts": ["copies by upload"],  # where the host has chosen
    "server/kernels/triton/backend.py:_Layer.finish": ["allocates by empty_like"],
    "server/kernels/triton/decode_attention.py:PagedStep.attend": ["allocates by new_empty"],
    "server/model/blocks/grouped_attention/triton_step.py:ProjectedHeads.prepare": ["allocates by new_empty"],
    "server/kernels/triton/gated_activation.py:activate": ["allocates by new_empty"],
    "server/model/blocks/latent_attention/triton_step.py:ProjectedLatents.prepare": ["allocates by new_empty"],
    "server/model/blocks/latent_attention/cuda.py:CudaLatentAttention.run": ["waits by query"],  # a projection
    "server/model/attention/mla.py:LatentProjection.values_by_token": ["allocates by new_empty"],
    "server/model/blocks/gated_delta_net/triton_step.py:GatedDelta.step": ["allocates by new_empty"],
    "server/model/blocks/mamba2/triton_step.py:Mamba2.step": ["allocates by new_empty"],
    "server/model/blocks/short_convolution/triton_step.py:step_convolution": ["allocates by new_empty"],
    "server/kernels/triton/rms_norm.py:PlainRmsNorm.__call__": ["allocates by new_ones"],  # before a capture
    "server/kernels/triton/rms_norm.py:RmsNorm.__call__": ["allocates by empty_like"],
    "server/kernels/triton/rms_norm.py:RmsNorm.add_and_norm": ["allocates by empty_like"],
    "server/kernels/triton/router_choice.py:choose": ["allocates by empty"],
    "server/model/attention/decode_attention.py:DecodeAttention.attend": ["allocates by new_empty"],
    "server/model/attention/mla.py:LatentProjection.placeholder": ["allocates by new_zeros"],
    "server/model/cuda_layers/routers.py:CudaNormedRouter.__call__": ["allocates by empty"],
    "server/model/experts/strategies/strategy.py:ExpertStrategy.run": ["allocates by zeros_like"],  # where images are
    "server/model/blocks/recurrent/cuda.py:CudaRecurrentMixer.run": ["copies by tensor"],  # a method of the states
    "server/model/recurrent/rows.py:join": ["allocates by new_empty"],  # of steps with pieces of prompts
    "server/model/modules/forward.py:Forward._keep_hidden": [
        "allocates by empty",
        "reads the device by cpu",
    ],  # of embeddings
}


def find_breaches(source: str, names: Collection[str]) -> dict[str, list[str]]:
    """Return what functions of a module do that a capture does not permit, by name.

    Args:
        names: as ``__qualname__`` has them.

    Raises:
        KeyError: there is no such function.
    """
    functions = dict(_functions(ast.parse(source), ""))
    attributes = _tensor_attributes(functions)
    found = {}
    for name in names:
        own = attributes.get(name.rpartition(".")[0], frozenset())
        found[name] = sorted(set(_Reader(functions[name], own).breaches()))
    return found


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.If):
            yield from _functions(child, prefix)


def _tensor_attributes(functions: Mapping[str, ast.FunctionDef]) -> dict[str, frozenset[str]]:
    """Return the attributes of each class that its methods set to tensors."""
    found: dict[str, frozenset[str]] = {}
    for name, function in functions.items():
        reader, owner = _Reader(function, frozenset()), name.rpartition(".")[0]
        pairs = [pair for node in ast.walk(function) for pair in _assignments(node)]
        names = {
            target.attr for target, value in pairs if isinstance(target, ast.Attribute) and reader.is_tensor(value)
        }
        found[owner] = found.get(owner, frozenset()) | names
    return found


def _assignments(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Yield each target of an assignment with its value."""
    if isinstance(node, ast.NamedExpr) or (isinstance(node, ast.AnnAssign | ast.AugAssign) and node.value is not None):
        assert node.value is not None
        yield node.target, node.value
    for target in node.targets if isinstance(node, ast.Assign) else ():
        assert isinstance(node, ast.Assign)
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts, strict=True)
        else:
            yield target, node.value


class _Reader:
    """Reads a function.

    Args:
        attributes: of ``self`` that are tensors.
    """

    def __init__(self, function: ast.FunctionDef, attributes: frozenset[str]):
        self._function, self._attributes = function, attributes
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        self._names = {each.arg for each in arguments if _is_tensor_type(each.annotation)}
        for node in ast.walk(function):
            for target, value in _assignments(node):
                if isinstance(target, ast.Name) and self.is_tensor(value):
                    self._names.add(target.id)

    def is_tensor(self, node: ast.expr) -> bool:
        """Return whether an expression is a tensor, as far as the function tells."""
        found = False
        match node:
            case ast.Name(id=name):
                found = name in self._names
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                found = name in self._attributes
            case ast.Attribute(value=value, attr="T" | "mT" | "data"):
                found = self.is_tensor(value)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch" | "F"), attr=name)):
                found = name not in NO_TENSOR | OF_SHAPE
            case ast.Call(func=ast.Attribute(value=value, attr=name)):
                found = name not in OF_SHAPE and (name in ALLOCATES or self.is_tensor(value))
            case ast.Compare(left=left, ops=operators, comparators=others):
                is_plain = any(isinstance(each, ast.Is | ast.IsNot) for each in operators)
                found = not is_plain and any(map(self.is_tensor, [left, *others]))
            case ast.BinOp(left=left, right=right):
                found = self.is_tensor(left) or self.is_tensor(right)
            case ast.UnaryOp(op=ast.USub() | ast.Invert(), operand=value) | ast.Subscript(value=value):
                found = self.is_tensor(value)
            case ast.IfExp(body=one, orelse=other):
                found = self.is_tensor(one) or self.is_tensor(other)
        return found

    def breaches(self) -> Iterator[str]:
        """Yield what a capture does not permit."""
        for node in ast.walk(self._function):
            if isinstance(node, ast.Call):
                yield from self._of_call(node)
            for value in _decided_by(node):
                if self.is_tensor(value):
                    yield f"decides by the tensor {ast.unparse(value)}"
            if isinstance(node, ast.For | ast.comprehension) and self.is_tensor(node.iter):
                yield f"iterates over the tensor {ast.unparse(node.iter)}"
            if isinstance(node, ast.FormattedValue) and self.is_tensor(node.value):
                yield f"prints the tensor {ast.unparse(node.value)}"

    def _of_call(self, call: ast.Call) -> Iterator[str]:
        match call.func:
            case ast.Attribute(value=ast.Name(id="np")):
                return
            case ast.Attribute(attr=name) | ast.Name(id=name):
                kinds = {"reads the device": READS, "waits": WAITS, "allocates": ALLOCATES, "copies": FROM_HOST}
                yield from (f"{kind} by {name}" for kind, those in kinds.items() if name in those)
        if isinstance(call.func, ast.Attribute) and call.func.attr == "to" and "cpu" in ast.unparse(call):
            yield "reads the device by to"
        if isinstance(call.func, ast.Name) and call.func.id in CONVERSIONS and any(map(self.is_tensor, call.args)):
            yield f"reads the device by {call.func.id}"


def _is_tensor_type(annotation: ast.expr | None) -> bool:
    return annotation is not None and ast.unparse(annotation) in {"torch.Tensor", "torch.Tensor | None"}


def _decided_by(node: ast.AST) -> list[ast.expr]:
    """Return the expressions by whose truth a node goes on."""
    match node:
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test) | ast.Assert(test=test):
            return [test]
        case ast.BoolOp(values=values):
            return values
        case ast.UnaryOp(op=ast.Not(), operand=value):
            return [value]
        case ast.comprehension(ifs=conditions):
            return conditions
    return []

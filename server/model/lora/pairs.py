"""Matches the tensors of an adapter with the matrices of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from expert_store.catalog import TensorSource
from server.model.lora.base_copies import is_copy, is_zero
from server.model.lora.peft_config import MAX_RANK, PeftConfig
from server.model.lora.target_names import PEFT_PREFIX, TargetNames
from server.model.lora.targets import LoraTargets

FLOATS = {torch.float32, torch.bfloat16, torch.float16}
READABLE = FLOATS | {torch.float64}
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
EMBEDDINGS = (".lora_embedding_A", ".lora_embedding_B")  # the same of an embedding
NESTED, WEIGHT = ".base_layer", ".weight"


@dataclass(frozen=True)
class LoraPair:
    """The two tensors of an addition.

    Args:
        target: a linear layer's name, or the layer and parameter of routed experts.
        expert: the only expert whose matrix this is; None for a linear layer, or for all experts.
        num_experts: experts that the tensors are of, one after the other in ``down`` and interleaved in ``up``; 0 if
            they are of one matrix.
        is_swapped: PEFT took inputs for outputs, so that ``down`` and ``up`` are each other's transpose.
    """

    target: str | tuple[int, str]
    expert: int | None
    down: TensorSource
    up: TensorSource
    rank: int
    scale: float
    first_output: int = 0
    num_experts: int = 0
    is_swapped: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of both matrices in memory."""
        return self.down.dtype if self.down.dtype == self.up.dtype and self.down.dtype in FLOATS else torch.float32


@dataclass(frozen=True)
class Match:
    """The additions that a model can take, and a sentence for each problem.

    Args:
        num_idle: tensors that change nothing: copies of the base model's, and additions of zero.
    """

    pairs: tuple[LoraPair, ...]
    problems: tuple[str, ...]
    num_tensors: int
    num_idle: int = 0

    @property
    def num_applied(self) -> int:
        return 2 * len(self.pairs)

    @property
    def summary(self) -> str:
        """The numbers of tensors, for people."""
        changes = "changes" if self.num_idle == 1 else "change"
        idle = f" ({self.num_idle} {changes} nothing)" if self.num_idle else ""
        return f"{self.num_applied} of {self.num_tensors} applied{idle}"


def match_pairs(sources: Mapping[str, TensorSource], config: PeftConfig, targets: LoraTargets) -> Match:
    """Match the tensors of an adapter's file with a model.

    Raises:
        ExpertStoreError: a tensor that may change nothing can't be read.
    """
    modules: dict[str, dict[str, TensorSource]] = {}
    problems: list[str] = []
    matcher, pairs, num_idle = _Matcher(config, targets), list[LoraPair](), 0
    for name, source in sources.items():
        end = next((end for end in (DOWN, UP) if name.endswith(end)), None)
        if end is not None:
            modules.setdefault(name.removesuffix(end).removeprefix(PEFT_PREFIX), {})[end] = source
        elif (problem := matcher.problem_of_copy(source)) is None:
            num_idle += 1
        else:
            problems.append(problem)
    for module, tensors in modules.items():
        if len(tensors) == 1:
            present = next(iter(tensors.values())).name
            problems.append(f"{present} has no counterpart; the file is incomplete")
            continue
        if matcher.adds_nothing(module, tensors[UP]):
            num_idle += len(tensors)
            continue
        try:
            pairs.append(matcher.pair(module, tensors[DOWN], tensors[UP]))
        except _MismatchError as error:
            problems.append(str(error))
    return Match(tuple(pairs), (*dict.fromkeys(problems), *_twice(pairs)), len(sources), num_idle)


class _MismatchError(Exception):
    """A module of the adapter does not fit the model."""


class _Matcher:
    def __init__(self, config: PeftConfig, targets: LoraTargets):
        self._config, self._targets, self._names = config, targets, TargetNames(targets)

    def problem_of_copy(self, source: TensorSource) -> str | None:
        """Return a sentence about a tensor that is no addition; None if it is a copy of the model's own."""
        module = source.name.removeprefix(PEFT_PREFIX).removesuffix(WEIGHT).removesuffix(NESTED)
        own = self._names.copied(module) if source.name.endswith(WEIGHT) else None
        embedding = next((module.removesuffix(end) for end in EMBEDDINGS if module.endswith(end)), None)
        if embedding is not None and self._names.is_refused(embedding):
            return self._names.absence(embedding)
        if own is None:
            return f"the tensor {source.name} is unknown; a LoRA has tensors named lora_A.weight and lora_B.weight"
        if is_copy(source, own):
            return None
        return (
            f"{source.name} is not this model's {module}, which an adapter can add to but not replace; use the model "
            "that it was trained on, or merge it into that model"
        )

    def adds_nothing(self, module: str, up: TensorSource) -> bool:
        """Return True if an addition that the model can't take is zero, such as one to a tower that saw no image."""
        return self._names.is_refused(module) and up.dtype in READABLE and is_zero(up)

    def pair(self, module: str, down: TensorSource, up: TensorSource) -> LoraPair:
        """Return the addition of one module.

        Raises:
            _MismatchError: the model has no such module, or the tensors do not fit it.
        """
        linear = self._names.linear(module)
        if linear is None and self._names.is_refused(module):
            raise _MismatchError(self._names.absence(module))
        _check_tensors(down, up)
        if linear is not None:
            rank = self._rank(module, module, down, up, sizes=self._targets.linears[linear])
            return LoraPair(linear, None, down, up, rank, self._config.scale_of(module, rank))
        matrix = self._names.expert_matrix(module)
        if matrix is not None:
            inputs, outputs = self._targets.experts[matrix.layer, matrix.parameter]
            num_outputs = outputs if matrix.half is None else outputs // 2
            rank = self._rank(module, module, down, up, sizes=(inputs, num_outputs))
            scale = self._config.scale_of(module, rank)
            first = 0 if matrix.half is None else matrix.half * num_outputs
            return LoraPair((matrix.layer, matrix.parameter), matrix.expert, down, up, rank, scale, first)
        return self._fused(module, down, up)

    def _fused(self, module: str, down: TensorSource, up: TensorSource) -> LoraPair:
        """Return the addition to one parameter of all experts, whose name follows from nesting and shapes."""
        outer = module
        while outer.endswith(NESTED):
            outer = outer.removesuffix(NESTED)
        layer = self._names.experts(outer)
        if layer is None:
            raise _MismatchError(self._names.absence(module))
        num_experts = self._targets.num_experts[layer]
        shapes = {parameter: shape for (each, parameter), shape in self._targets.experts.items() if each == layer}
        wanted = {name for name in shapes if _is_wanted(f"{outer}.{name}", self._config.target_parameters)} or {*shapes}
        sizes = down.shape[1], up.shape[0]
        fitting = [name for name in shapes if name in wanted and sizes in {shapes[name], shapes[name][::-1]}]
        # PEFT wraps the parameters of a module in their order, the first one innermost.
        depth = (len(module) - len(outer)) // len(NESTED)
        exact = [name for name in fitting if sizes == shapes[name]] or fitting
        if not exact:
            raise _MismatchError(
                f"{down.name} and {up.name} have the shapes {down.shape} and {up.shape}, which fit no matrix of the "
                f"{num_experts} experts of layer {layer}"
            )
        parameter = exact[0] if len(exact) == 1 else exact[max(0, len(exact) - 1 - depth)]
        rank = self._rank(module, f"{outer}.{parameter}", down, up, sizes=sizes, count=num_experts)
        scale = self._config.scale_of(f"{outer}.{parameter}", rank)
        is_swapped = sizes != shapes[parameter]
        return LoraPair((layer, parameter), None, down, up, rank, scale, 0, num_experts, is_swapped)

    def _rank(
        self,
        module: str,
        pattern_name: str,
        down: TensorSource,
        up: TensorSource,
        *,
        sizes: tuple[int, int],
        count: int = 1,
    ) -> int:
        """Return the rank of two tensors of ``count`` matrices, after their shapes were checked."""
        inputs, outputs = sizes
        rows = down.shape[0]
        if down.shape[1] != inputs or up.shape != (outputs, rows):
            raise _MismatchError(
                f"{down.name} and {up.name} have the shapes {down.shape} and {up.shape}, but {module} of the model has "
                f"{inputs} inputs and {outputs} outputs"
            )
        rank = rows // count
        if rows % count or not 1 <= rank <= MAX_RANK:
            per = f" for {count} experts" if count > 1 else ""
            raise _MismatchError(f"{down.name} has {rows} rows{per}; ranks from 1 to {MAX_RANK} are supported")
        if rank != self._config.rank_of(pattern_name):
            raise _MismatchError(
                f"{down.name} is of rank {rank}, but adapter_config.json says {self._config.rank_of(pattern_name)}"
            )
        return rank


def _check_tensors(down: TensorSource, up: TensorSource) -> None:
    for source in (down, up):
        if source.dtype not in READABLE:
            dtype = str(source.dtype).removeprefix("torch.")
            raise _MismatchError(f"{source.name} is of type {dtype}; adapters are stored as floats of 16 or 32 bits")
        if len(source.shape) != 2:  # noqa: PLR2004
            raise _MismatchError(f"{source.name} has the shape {source.shape}; it must have two dimensions")


def _is_wanted(name: str, target_parameters: Sequence[str]) -> bool:
    return any(name == each or name.endswith(f".{each}") for each in target_parameters)


def _twice(pairs: list[LoraPair]) -> Iterator[str]:
    """Yield a problem for each matrix that two modules of the adapter add to."""
    seen: dict[tuple[object, ...], str] = {}
    for pair in pairs:
        name = pair.down.name.removesuffix(DOWN)
        for key in ((pair.target, pair.expert, pair.first_output), (pair.target, None, pair.first_output)):
            if key in seen:
                yield f"{seen[key]} and {name} are additions to the same matrix; the file has it twice"
                break
        seen[pair.target, pair.expert, pair.first_output] = name

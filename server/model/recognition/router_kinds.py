"""Finds the way in which a router chooses and weights experts, by trials that tell the ways apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from server.kernels.expert import ExpertsModule
from server.kernels.native.structures.layers import Router, RouterKind
from server.model.blocks.errors import UnsupportedLayerError
from server.model.experts.router import RouterWeights
from server.model.hooks import use_hooks
from server.model.native_layers.own_router import OwnRouter
from server.model.native_layers.router_mlp import RouterMlpParts
from server.model.recurrent.recurrent_modules import ModuleCall
from server.model.transformers_hooks.probe import Probe

SPREADS = (0.3, 1.0, 3.0)  # standard deviations of a trial's logits: flat and peaked scores
ROWS = 16  # of each spread
DRAWS, SPARSE_DRAWS = 4, 64  # of noise; weights of the sparse mixer jump at many places
AS_GOOD, LEAST_ERROR = 1.01, 1e-9  # errors up to so many times the least, or up to so small a one, are equal
JITTER = "router_jitter_noise"  # attribute of a router: half of what the sparse mixer regards as near
LEAST_IN_GROUP = 2  # experts, as most groups are chosen by their two best
TOKENS = "input_ids"  # argument of a block whose router chooses by tokens
METHOD = "topk_method"  # attribute of a router
BY_BEST, WITHOUT_GROUPS = "group_limited_greedy", "greedy"  # values of it; the first chooses groups by their best
RETURNED = ("logits", "weights", "chosen")  # by a router's module that makes the choice
LEAST_STEADY = 3  # rows that a trial must have to prove anything
MOST_JUMP = 0.05  # change of a weight, relative to the largest of its row
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}  # of weights, relative to the largest
NOISE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}  # of logits, relative to the largest of a row
LEAST_AGREEMENT = {torch.float32: 0.99, torch.float16: 0.95, torch.bfloat16: 0.9}  # share of equal choices of experts


@dataclass(frozen=True)
class Trial:
    """The choices and weights of a model's router for some logits."""

    logits: torch.Tensor  # float64 (rows, experts)
    chosen: torch.Tensor  # (rows, k)
    weights: torch.Tensor  # float64 (rows, k)
    is_by_token: bool = False  # experts are those of tokens in a table, whatever the logits
    chooses: bool = False  # the router's module returned them itself (``Router.chooses`` of a declaration)

    @property
    def given(self) -> torch.Tensor | None:
        """The experts that do not depend on logits; None if they are chosen by these."""
        return self.chosen if self.is_by_token else None


@dataclass(frozen=True)
class Match:
    """The difference of a candidate from a trial."""

    error: float  # of weights, relative to a row's largest; infinite if it chooses other experts
    scale: float  # from its weights to the model's
    agreement: float = 0.0  # share of steady rows for which it chooses the same experts


class _RecordedError(Exception):
    """The recorder has what it needs."""


class _Recorder(Probe):
    """Records the call of experts, and leaves the forward pass there."""

    call: tuple[torch.Tensor, torch.Tensor]

    def run_experts(
        self, module: ExpertsModule, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        del module, hidden_states
        self.call = top_k_index, top_k_weights
        raise _RecordedError


def run_trial(
    block: nn.Module,
    router: RouterWeights,
    dtype: torch.dtype,
    own: OwnRouter | None = None,
    *,
    table: torch.Tensor | None = None,
    mlp: RouterMlpParts | None = None,
    owner: nn.Module | None = None,
) -> Trial:
    """Pass random rows to the router in a block, so scaled that its scores are flat, moderate and peaked.

    Args:
        block: calls the experts, or is a router beside them (``own``).
        router: its weights.
        dtype: of the model.
        own: the parts of a router beside the experts.
        table: ``(vocabulary, k)`` experts of tokens, which the block takes besides its rows then.
        mlp: makes the rows that the weights take.
        owner: the module that owns the router's parameters.

    Raises:
        UnsupportedLayerError: the block takes more than hidden states.
    """
    matrix = router.weight.double()
    wanted = torch.tensor(SPREADS, dtype=torch.float64).repeat_interleave(ROWS).unsqueeze(1)
    random = torch.Generator().manual_seed(0)
    size = matrix.shape[1] if mlp is None else mlp.down.in_features
    rows = torch.randn((len(wanted), size), generator=random, dtype=torch.float64)
    tokens = {} if table is None else {TOKENS: torch.randint(len(table), (1, len(wanted)), generator=random)}
    spread = ((rows if mlp is None else mlp.rows(rows)) @ matrix.T).std(1, keepdim=True) * router.logits_scale
    rows = torch.where(spread > 0, rows * wanted / spread, rows).to(dtype)
    recorder, calls = _Recorder(), list[ModuleCall]()
    handle = (owner or block).register_forward_hook(
        lambda module, args, kwargs, output: calls.append(ModuleCall(module, args, kwargs, output)), with_kwargs=True
    )
    try:
        with torch.inference_mode(), use_hooks(recorder):
            output = block(rows if own is not None else rows.unsqueeze(0), **tokens)
            recorder.call = _call_of(output)
    except _RecordedError:
        pass
    except TypeError as error:
        raise UnsupportedLayerError(f"its MLP is called in another way ({error})") from error
    finally:
        handle.remove()
    chosen, weights = recorder.call
    chooses = any(_chooses(call, router, chosen, weights) for call in calls)
    weights = weights.double()
    if own is not None and own.expert_scales is not None:
        weights = weights / own.expert_scales.double()[chosen]
    maker = own or mlp
    logits = logits_of(router, rows if maker is None else maker.rows(rows))
    return Trial(logits, chosen, weights, bool(tokens), chooses)


def _chooses(call: ModuleCall, router: RouterWeights, chosen: torch.Tensor, weights: torch.Tensor) -> bool:
    """Return whether a module takes rows, and at most the correction, and returns numbers of experts, weights, choices.

    Args:
        chosen, weights: that experts are called with.
    """
    given = [each for each in (*call.args, *call.kwargs.values()) if each is not None]
    correction, others = router.correction, given[1:]
    takes_correction = correction is not None and all(torch.equal(each.flatten(), correction) for each in others)
    if (others and not takes_correction) or not isinstance(call.output, tuple) or len(call.output) != len(RETURNED):
        return False
    first, *own = call.output
    shape = len(chosen), len(router.weight) - router.num_shared
    return first.shape == shape and torch.equal(own[0], weights) and torch.equal(own[1], chosen)


def _call_of(output: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the choices and their weights among what a router returns.

    Raises:
        UnsupportedLayerError: they are not there.
    """
    tensors = [each for each in output if isinstance(each, torch.Tensor)] if isinstance(output, tuple) else []
    chosen = next((each for each in tensors if not each.is_floating_point()), None)
    weights = [
        each for each in tensors if each.is_floating_point() and chosen is not None and each.shape == chosen.shape
    ]
    if chosen is None or len(weights) != 1:
        raise UnsupportedLayerError("its router returns no choices")
    return chosen, weights[0]


def logits_of(router: RouterWeights, rows: torch.Tensor) -> torch.Tensor:
    """Return a router's logits in float64."""
    logits = rows.double() @ router.weight.double().T
    return (logits if router.bias is None else logits + router.bias.double()) * router.logits_scale


def find_router_kind(
    router: Router, owner: Any, correction: torch.Tensor | None, trial: Trial, dtype: torch.dtype
) -> Router:
    """Return the way to choose experts that comes nearest to a trial, with its scale.

    Of equal ones, such as a softmax before and after the choice, it is the likeliest.

    Args:
        router: the matrix, the bias and the address of the correction.
        owner: the module that owns the router's parameters; it may define groups.
        correction: float64 ``(experts,)``, added to scores for the choice.
        dtype: in which the model computed the trial.

    Raises:
        UnsupportedLayerError: none comes near, or the trial proves nothing.
    """
    is_steady = False
    by_kind: dict[tuple[int, int], tuple[Router, Match]] = {}  # groups may be chosen in two ways, the likelier first
    for candidate in routers(router, owner, is_corrected=correction is not None):
        match = match_of(candidate, correction, trial, NOISE[dtype], LEAST_AGREEMENT[dtype])
        is_steady |= match is not None
        match, kind = match or Match(torch.inf, 1.0), (candidate.kind, candidate.is_normalised)
        if kind not in by_kind or match.agreement > by_kind[kind][1].agreement:
            by_kind[kind] = candidate, match
    found = list(by_kind.values())
    best = min(match.error for _, match in found)
    if not is_steady:
        raise UnsupportedLayerError("its router gives all experts the same scores, which does not show how it chooses")
    if not best <= TOLERANCES[dtype]:
        raise UnsupportedLayerError("its router chooses in another way")
    candidate, match = next((each, match) for each, match in found if match.error <= AS_GOOD * best + LEAST_ERROR)
    candidate.scale = match.scale
    return candidate


def routers(router: Router, owner: Any, *, is_corrected: bool) -> Iterator[Router]:
    """Yield the ways to choose experts, the likeliest first.

    Args:
        owner: the module that owns the router's parameters; it may define groups.
        is_corrected: values are added to scores for the choice.
    """
    num_groups, top_groups = groups_of(owner, router.matrix.outputs - router.num_shared, router.top_k)
    kinds = [RouterKind.SOFTMAX_FIRST, RouterKind.TOP_FIRST]
    if is_corrected:
        kinds = [RouterKind.SIGMOID, *reversed(kinds), RouterKind.TOP_SIGMOID]
    else:  # the order of logits is that of their sigmoids, but it has no ties where these are 1
        kinds.append(RouterKind.TOP_SIGMOID if num_groups == 1 else RouterKind.SIGMOID)
    kinds.append(RouterKind.SQRT_SOFTPLUS)
    if router.num_shared:
        kinds = [RouterKind.SIGMOID]
    jitter = float(getattr(owner, JITTER, 0.0))
    if jitter:
        kinds.append(RouterKind.SPARSE_MIXER)
    by_best = (1, 0) if getattr(owner, METHOD, None) == BY_BEST else (0, 1)
    for kind, is_by_best in product(kinds, by_best if num_groups > 1 else (0,)):
        for is_normalised in (1, 0):
            candidate = Router.from_buffer_copy(router)
            candidate.kind, candidate.is_normalised, candidate.scale = kind, is_normalised, 1.0
            candidate.is_by_best = is_by_best
            candidate.num_groups, candidate.top_groups = num_groups, top_groups
            candidate.near = 2 * jitter if kind is RouterKind.SPARSE_MIXER else 0.0
            yield candidate


def groups_of(owner: Any, num_experts: int, top_k: int) -> tuple[int, int]:
    """Return how many groups of experts a router has, and how many of these it chooses.

    Raises:
        UnsupportedLayerError: there can't be so many, or their experts are too few.
    """
    if getattr(owner, METHOD, None) == WITHOUT_GROUPS:
        return 1, 1
    for name in ("num_group", "n_group"):
        num_groups, top_groups = getattr(owner, name, None), getattr(owner, "topk_group", None)
        if isinstance(num_groups, int) and isinstance(top_groups, int):
            if (num_groups, top_groups) == (1, 1):
                break
            size = num_experts // num_groups if num_groups > 0 else 0
            is_possible = size >= LEAST_IN_GROUP and size * num_groups == num_experts
            if not is_possible or not top_k <= size * top_groups <= num_experts:
                raise UnsupportedLayerError(
                    f"its router chooses {top_k} experts from {top_groups} of {num_groups} groups of {num_experts}"
                )
            return num_groups, top_groups
    return 1, 1


def steady_rows(
    router: Router,
    correction: torch.Tensor | None,
    logits: torch.Tensor,
    noise: float,
    given: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the choices, the weights, and the rows that choose the same experts if their logits change a little.

    Rows that don't, such as those whose logits are all equal, do not show how a router chooses.

    Args:
        noise: change of logits, relative to the largest of a row.
        given: experts that do not depend on logits.
    """
    chosen, weights = choose(router, correction, logits, given)
    wanted, random = chosen.sort(1).values, torch.Generator().manual_seed(0)
    size = noise * logits.abs().amax(1, keepdim=True).clamp_min(1e-6)
    is_steady = torch.ones(len(logits), dtype=torch.bool)
    for _ in range(SPARSE_DRAWS if router.kind == RouterKind.SPARSE_MIXER else DRAWS):
        changed = logits + size * torch.randn(logits.shape, generator=random, dtype=logits.dtype)
        other, other_weights = choose(router, correction, changed, given)
        is_steady &= (other.sort(1).values == wanted).all(1)
        if router.kind == RouterKind.SPARSE_MIXER:  # its weights jump where another expert becomes near
            is_steady &= (other_weights - weights).abs().amax(1) < MOST_JUMP * weights.amax(1)
    return chosen, weights, is_steady


def choices_agree(num_same: int, num_steady: int, dtype: torch.dtype) -> bool:
    """Return True if enough steady rows chose the same experts; of few rows, one may differ.

    Errors of attention before the router, as of quantised matrices, change its logits by more than their own rounding.
    """
    return num_same >= min(LEAST_AGREEMENT[dtype] * num_steady, max(num_steady - 1, num_steady / 2))


def match_of(
    router: Router, correction: torch.Tensor | None, trial: Trial, noise: float, least_agreement: float
) -> Match | None:
    """Compare a way to choose experts with a trial; return None if the trial has too few steady rows."""
    chosen, weights, is_steady = steady_rows(router, correction, trial.logits, noise, trial.given)
    if int(is_steady.sum()) < LEAST_STEADY:
        return None
    (wanted, order), (found, own_order) = trial.chosen.sort(1), chosen.sort(1)
    is_same = (wanted == found).all(1) & is_steady
    agreement = int(is_same.sum()) / int(is_steady.sum())
    if agreement < least_agreement:
        return Match(torch.inf, 1.0)
    is_same &= trial.weights.any(1)  # some may have chosen no expert
    given, own = trial.weights.gather(1, order)[is_same], weights.gather(1, own_order)[is_same]
    scale = float((given.sum(1) / own.sum(1)).median())
    error = (given - own * scale).abs().amax(1) / given.abs().amax(1).clamp_min(1e-30)
    return Match(float(error.nan_to_num(torch.inf).max()), scale, agreement)


def choose(
    router: Router, correction: torch.Tensor | None, logits: torch.Tensor, given: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the experts that a router chooses and their weights, both ``(rows, k)``, as ``layers/router.cpp`` does.

    Args:
        given: experts that do not depend on logits.
    """
    scores = logits
    if router.kind == RouterKind.SOFTMAX_FIRST:
        scores = logits.softmax(1)
    elif router.kind == RouterKind.SIGMOID:
        scores = logits.sigmoid()
    elif router.kind == RouterKind.SQRT_SOFTPLUS:
        scores = F.softplus(logits).sqrt()
    num_experts = scores.shape[1] - int(router.num_shared)
    scores, shared = scores[:, :num_experts], scores[:, num_experts:]
    ranked = scores if correction is None else scores + correction
    if router.num_groups > 1:
        groups = ranked.view(len(ranked), router.num_groups, -1)
        best = groups.topk(1 if router.is_by_best else 2, -1).values.sum(-1).topk(router.top_groups).indices
        is_kept = torch.zeros(groups.shape[:2], dtype=torch.bool).scatter(1, best, value=True)
        ranked = groups.masked_fill(~is_kept.unsqueeze(2), -torch.inf).flatten(1)
    chosen = ranked.topk(router.top_k).indices if given is None else given
    weights = scores.gather(1, chosen)
    if router.num_skips:
        is_none = chosen >= num_experts - router.num_skips
        chosen, weights = chosen.masked_fill(is_none, 0), weights.masked_fill(is_none, 0.0)
    if router.kind == RouterKind.SPARSE_MIXER:
        weights = _mix_sparsely(scores, chosen, router.near)
    if router.kind == RouterKind.TOP_SIGMOID:
        weights = weights.sigmoid()
    if router.kind == RouterKind.TOP_FIRST:
        weights = weights.softmax(1)
    total = weights.sum(1, keepdim=True) + shared.sum(1, keepdim=True)
    return chosen, weights / total if router.is_normalised else weights


def _mix_sparsely(scores: torch.Tensor, chosen: torch.Tensor, near: float) -> torch.Tensor:
    """Return the weights ``(rows, k)`` of the sparse mixer (arXiv 2409.12136)."""
    left, weights = scores.clone(), []
    for index in chosen.unbind(1):
        best = scores.gather(1, index.unsqueeze(1))
        is_far = (best - scores) / torch.maximum(scores.abs(), best) > near
        weights.append(left.masked_fill(is_far, -torch.inf).softmax(1).gather(1, index.unsqueeze(1)))
        left = left.scatter(1, index.unsqueeze(1), -torch.inf)
    return torch.cat(weights, 1)

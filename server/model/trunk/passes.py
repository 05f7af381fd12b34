"""The passes that prepare a loaded model for steps, in the order in which they run.

``PASSES`` is the list. Each pass takes a ``PreparedModel``, and either finds something about the model or changes its
modules; its docstring says which, and after which others it has to run (``After: ...``, which a test compares with the
list). A pass that does not apply to a model leaves it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel

from server.kernels.compute_pool import ComputePool
from server.kernels.expert import ExpertsModule
from server.model.architecture import set_implementations
from server.model.attention.key_choice import hook_indexers
from server.model.attention.mla import replace_projections, resolve_projections
from server.model.cuda_layers.compile import compile_for_cuda, program_of
from server.model.cuda_layers.norms import fuse_norms
from server.model.cuda_layers.residuals import fuse_residuals
from server.model.experts.expert_layer import ExpertLayer
from server.model.experts.next_layer_gate import NextLayerGate, find_next_layer_gates
from server.model.experts.router import RouterWeights, changeable
from server.model.hooks import INDEXED_IMPLEMENTATION
from server.model.lora.linear_hooks import find_linears
from server.model.lora.router_hooks import find_routers_with_products
from server.model.modules.forward import Forward
from server.model.modules.linear import speed_up_linears
from server.model.modules.probe_run import ProbeRun
from server.model.native_layers.model import NativeModel
from server.model.program import ModelProgram
from server.model.recognition.find_program import check_modules, declaration_on_gpu, find_program
from server.model.transformers_hooks.batching_checks import find_special_layers


@dataclass
class PreparedModel:
    """A model under preparation. The first fields are given; each of the others is set by the pass that is named.

    Args:
        model: with its weights, but without its experts.
        layers: its modules of experts.
        pool: threads and kernels that compute its steps.
        max_model_len: tokens of the longest sequence.
        is_deterministic: whether a sequence's logits must have the same bits in any company.
    """

    model: PreTrainedModel
    layers: Mapping[ExpertsModule, ExpertLayer]
    pool: ComputePool
    max_model_len: int
    is_deterministic: bool

    special: str | None = field(init=False)  # layers whose attention runs by sequence (find_special)
    forward: Forward = field(init=False)  # calls the model (hook_forward)
    first: ProbeRun = field(init=False)  # what some tokens have shown (run_first_tokens)
    native: NativeModel | None = field(init=False)  # what native kernels run, if they do (find_native)
    program: ModelProgram = field(init=False)  # what runs where (find_native, run_by_triton)
    linears: Mapping[str, nn.Module] = field(init=False)  # modules that adapters can add to (find_adaptable_linears)
    routers: Mapping[int, RouterWeights] = field(init=False)  # by layer, that adapters can change (find_all_routers)
    router_layers: Mapping[str, int] = field(init=False)  # those that are called as modules (find_all_routers)
    gates: Mapping[int, NextLayerGate] = field(init=False)  # by layer, for prefetching (find_all_routers)

    @property
    def is_by_sequence(self) -> bool:
        """True if modules of attention run sequence by sequence."""
        return self.special is not None

    @property
    def has_free_attention(self) -> bool:
        """True if kernels of a GPU may attend in place of its modules."""
        return not self.is_by_sequence and not self.is_deterministic and not self.first.probe.choosing

    @property
    def numbers(self) -> dict[ExpertsModule, int]:
        """The layer of each module of experts."""
        return {module: layer.number for module, layer in self.layers.items()}


def hook_forward(prepared: PreparedModel) -> None:
    """Add torch hooks that insert embeddings of images, and keep the last hidden states."""
    prepared.forward = Forward(prepared.model)


def find_special(prepared: PreparedModel) -> None:
    """Find layers whose attention has to run sequence by sequence, by their names.

    An indexer that can be hooked is none, so indexers have to be transformers' own still.
    """
    prepared.special = find_special_layers(prepared.model)


def replace_latent_projections(prepared: PreparedModel) -> None:
    """Replace what looks like an MLA projection by a module that tells attention of its latents.

    After: find_special.
    ``resolve_latent_projections`` takes back those whose layers keep no latents.
    """
    if not prepared.is_by_sequence:
        replace_projections(prepared.model)


def hook_key_choice(prepared: PreparedModel) -> None:
    """Let the indexers of sparse attention call the hooks of a step.

    After: find_special.
    """
    if not prepared.is_by_sequence:
        hook_indexers(prepared.model)


def find_native(prepared: PreparedModel) -> None:
    """Find what native kernels run, and build their layers.

    Of the modules it changes linear layers alone: coded ones become plain again if the model is not native.

    After: replace_latent_projections, hook_key_choice.
    """
    prepared.native, prepared.program = find_program(
        prepared.model,
        prepared.layers,
        kernels=prepared.pool.kernels,
        longest=prepared.max_model_len,
        special=prepared.special,
    )


def speed_up_native(prepared: PreparedModel) -> None:
    """Let large linear layers of a native model run by the pool's kernels and threads in the first pass already.

    After: find_native.
    """
    if prepared.native is not None:
        speed_up_linears(prepared.model, prepared.pool)


def run_first_tokens(prepared: PreparedModel) -> None:
    """Run some tokens, record what modules ask for, and replace the forward of recurrent modules.

    Recurrent modules, and attention that runs by sequence, take each sequence's rows alone from then on.

    One layer of each kind runs if the model is native, whose twin was checked.

    After: hook_forward, find_special, replace_latent_projections, hook_key_choice, find_native, speed_up_native.

    Raises:
        ModelError: the model's experts can't be paged.
        NotBatchableError: the model can't run many sequences in one step.
    """
    size = min(prepared.max_model_len, int(prepared.model.config.get_text_config().vocab_size))
    prepared.first = ProbeRun(
        prepared.model,
        prepared.forward,
        size,
        is_by_sequence=prepared.is_by_sequence,
        is_native=prepared.native is not None,
    )


def check_by_modules(prepared: PreparedModel) -> None:
    """Check a model of which modules run a part.

    It runs the modules as transformers has them, but for the changes that steps need: no fused ones.

    After: find_native, run_first_tokens.

    Raises:
        NotBatchableError: the model can't run many sequences in one step.
        ModelError: a token's results depend on the other tokens of a step, and must not.
    """
    if not prepared.program.is_native:
        check_modules(
            prepared.model,
            prepared.first,
            prepared.program,
            special=prepared.special,
            is_deterministic=prepared.is_deterministic,
        )


def pass_masks_to_indexers(prepared: PreparedModel) -> None:
    """Let modules with indexers be called with masks, by the name of another attention function in the config.

    After: run_first_tokens, find_native.
    """
    if prepared.first.probe.indexed and not prepared.program.is_native:
        set_implementations(prepared.model.config, INDEXED_IMPLEMENTATION)


def run_by_triton(prepared: PreparedModel) -> None:
    """Let layers call kernels of a GPU in the places of their modules, where the declaration of the model allows it.

    After: find_special, run_first_tokens, find_native, check_by_modules, pass_masks_to_indexers.
    """
    first, replaces_mixers = prepared.first, prepared.has_free_attention
    declared = declaration_on_gpu(
        prepared.model,
        prepared.pool.triton_device,
        prepared.max_model_len,
        special=prepared.special,
        is_deterministic=prepared.is_deterministic,
    )
    if declared is not None:
        layers = compile_for_cuda(
            prepared.model, declared, first.states, first.recurrent, replaces_mixers=replaces_mixers
        )
        for layer in layers:
            layer.install()
        prepared.program = program_of(layers)


def resolve_latent_projections(prepared: PreparedModel) -> None:
    """Split the projections of layers that keep latents; restore those of others, and drop those that are native.

    After: replace_latent_projections, find_native, check_by_modules, run_by_triton, since modules can't run after it
    without a step's hooks.
    """
    inside = () if prepared.native is None else prepared.native.replaced
    resolve_projections(prepared.model, prepared.first.probe.latent_layers, inside)


def find_adaptable_linears(prepared: PreparedModel) -> None:
    """Find the linear layers that adapters can add to where modules call them.

    After: run_first_tokens, resolve_latent_projections, which decides what stands in the place of a projection.
    """
    found = find_linears(prepared.model, prepared.first.linear_calls, len(prepared.first.tokens))
    if prepared.native is not None:
        inside = {module for mixer in prepared.native.outside for module in mixer.module.modules()}
        found = {name: module for name, module in found.items() if module in inside}
    prepared.linears = found


def speed_up_linear_layers(prepared: PreparedModel) -> None:
    """Let large linear layers run by the pool's kernels and threads, by another class of the same modules.

    After: find_native, resolve_latent_projections, run_by_triton.
    """
    speed_up_linears(prepared.model, prepared.pool)


def fuse_all_norms(prepared: PreparedModel) -> None:
    """Replace the forward of RMS norms by kernels of a GPU.

    After: run_by_triton, which looks for norms that are transformers' own.
    """
    fuse_norms(prepared.model, prepared.pool.triton_device)


def fuse_residual_sums(prepared: PreparedModel) -> None:
    """Wrap the forward of layers whose norms add the residual before them, on a GPU.

    After: fuse_all_norms, whose kernels do so.
    """
    fuse_residuals(prepared.model, prepared.pool.triton_device)


def find_all_routers(prepared: PreparedModel) -> None:
    """Find the routers that adapters and variants can change, and the gates that predict the next layer's experts.

    It changes nothing.

    After: run_first_tokens.
    """
    first, numbers = prepared.first, prepared.numbers
    routers = first.find_routers(numbers)
    prepared.routers = changeable(routers)
    prepared.router_layers = find_routers_with_products(
        prepared.model, prepared.routers, first.router_calls, len(first.tokens)
    )
    prepared.gates = find_next_layer_gates(routers, numbers, first.probe.routed)


PASSES: Sequence[Callable[[PreparedModel], None]] = (
    hook_forward,
    find_special,
    replace_latent_projections,
    hook_key_choice,
    find_native,
    speed_up_native,
    run_first_tokens,
    check_by_modules,
    pass_masks_to_indexers,
    run_by_triton,
    resolve_latent_projections,
    find_adaptable_linears,
    speed_up_linear_layers,
    fuse_all_norms,
    fuse_residual_sums,
    find_all_routers,
)


def prepare(prepared: PreparedModel) -> PreparedModel:
    """Run all passes on a model; return it.

    Raises:
        ModelError: the model can't be served.
        NotBatchableError: the model can't run many sequences in one step.
    """
    for run in PASSES:
        run(prepared)
    return prepared

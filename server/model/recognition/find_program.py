"""Finds what runs where: a model's layers on native kernels, or all of it through the modules of transformers."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
import transformers
from transformers import PreTrainedModel

from server.kernels.expert import ExpertsModule
from server.kernels.native.backend import expert_shape
from server.kernels.native.library import Kernels, is_available
from server.kernels.triton.available import runs_on
from server.model.architecture import decoder_layers, text_body
from server.model.attention.key_choice import INDEXED
from server.model.blocks.errors import UnsupportedLayerError
from server.model.blocks.module.declaration import OwnModule
from server.model.coded.linears import restore_plain
from server.model.declarations.declaration import Declaration
from server.model.declarations.differences import differences
from server.model.errors import ModelError, NotBatchableError
from server.model.experts.expert_layer import ExpertLayer
from server.model.families.registry import declared
from server.model.modules.probe_run import ProbeRun
from server.model.native_layers.compile import compile_model
from server.model.native_layers.model import NativeModel
from server.model.program import NO_KERNELS, LayerTargets, ModelProgram, Target
from server.model.recognition.narrowing import NARROWINGS
from server.model.recognition.recognise import recognise
from server.model.recognition.twin import build_twin
from server.model.recognition.twin_cache import TwinCache
from server.model.transformers_hooks.batching_checks import INVARIANT, MAY_BE_NATIVE

log = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # that the kernels compute in


@torch.inference_mode()
def find_program(
    model: PreTrainedModel,
    layers: Mapping[ExpertsModule, ExpertLayer],
    *,
    kernels: Kernels | None,
    longest: int,
    special: str | None,
) -> tuple[NativeModel | None, ModelProgram]:
    """Return a model as the native kernels run it, None if they can't, and what runs where.

    Args:
        model: with its weights; its coded linear layers become plain again if modules run it.
        layers: the model's modules of experts.
        kernels: that may run it.
        longest: tokens of the longest sequence.
        special: layers whose attention modules run sequence by sequence, if the kernels do not have all layers.
    """
    dtype = text_body(model).dtype
    if model.device.type != "cpu":
        found: Declaration | ModelProgram = on_device(model, model.device, dtype, special)
    else:
        found = recognise_model(model, layers, dtype, kernels, longest=longest, special=special)
    if isinstance(found, Declaration):
        assert kernels is not None
        try:
            native = compile_model(model, found, layers, kernels=kernels, longest=longest)
        except UnsupportedLayerError as error:
            found = _by_modules(model, special, str(error))
        else:
            return native, program_of(model, found)
    restore_plain(model)
    return None, found


@torch.inference_mode()
def recognise_model(
    model: PreTrainedModel,
    layers: Mapping[ExpertsModule, ExpertLayer],
    dtype: torch.dtype,
    kernels: Kernels | None,
    *,
    longest: int,
    special: str | None,
) -> Declaration | ModelProgram:
    """Find on a model's twin what it is, if the native kernels can run it; else return what its modules run.

    A narrow twin is tried first, which takes little time and memory.

    Args:
        model: with or without weights.
        layers: the model's modules of experts.
        dtype: to compute in.
        kernels: that may run it.
        longest: tokens of the longest sequence.
        special: layers whose attention modules run sequence by sequence, if the kernels do not have all layers.

    Raises:
        NotBatchableError: the model can't run many sequences in one step.
    """
    if kernels is None or special not in (None, *MAY_BE_NATIVE):
        return _by_modules(model, special, NO_KERNELS if special is None else None)
    if dtype not in DTYPES:
        return _by_modules(model, special, f"it is computed in {dtype}")
    try:
        found = find_declaration(model, kernels, longest)
    except UnsupportedLayerError as error:
        return _by_modules(model, special, str(error))
    program = program_of(model, found)
    if special is not None and not program.is_native:
        outside = next(each for each in program.layers if each.mixer is not Target.NATIVE)
        return _by_modules(model, special, f"its {outside.name} is not native")
    shapes = (expert_shape(module, layer.layout, norms_results=True) for module, layer in layers.items())
    reason = next((shape for shape in shapes if isinstance(shape, str)), None)
    return found if reason is None else _by_modules(model, special, reason)


def find_declaration(model: PreTrainedModel, kernels: Kernels, longest: int) -> Declaration:
    """Return what a model is, as its twin shows now or showed before.

    Args:
        model: with or without weights.
        kernels: that may run it.
        longest: tokens of the longest sequence.

    Raises:
        NotBatchableError: the model can't run many sequences in one step.
        UnsupportedLayerError: the native kernels can't run it.
    """
    kept = TwinCache.of(model, longest)
    known = kept.read()
    if known is not None:
        return known
    try:
        found = recognise_twin(model, kernels, longest)
    except UnsupportedLayerError as error:
        kept.write(error)
        raise
    _compare_with_family(model, found)
    kept.write(found)
    return found


def declaration_on_gpu(
    model: PreTrainedModel, device: torch.device | None, longest: int, *, special: str | None, is_deterministic: bool
) -> Declaration | None:
    """Return what a model is, parts of which Triton's kernels may run; None if its twin on the CPU does not show it.

    Args:
        model: with or without weights.
        device: where Triton's kernels run; None for nowhere.
        longest: tokens of the longest sequence.
        special: layers whose attention modules run sequence by sequence.
        is_deterministic: whether each sequence must have the same results in any company; then none run.
    """
    is_possible = special in (None, *MAY_BE_NATIVE) and not is_deterministic and runs_on(device)
    if not is_possible or not is_available():
        return None
    kernels = Kernels(1)
    try:
        return find_declaration(model, kernels, longest)
    except (ModelError, UnsupportedLayerError) as error:
        log.info("kernels replace no part of its attention and routers: %s", error)
        return None
    finally:
        kernels.close()


def _compare_with_family(model: PreTrainedModel, found: Declaration) -> None:
    """Say in the log if a model is something else than the file of its family declares."""
    config = model.config.get_text_config()
    try:
        own = declared(config)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        different = [f"it can't read this config: {error!r}"]
    else:
        different = [] if own is None else [*differences(own, found)]
    if different:
        more = f", and {len(different) - 1} more" if len(different) > 1 else ""
        log.warning(
            "transformers %s computes this %s in another way than server/model/families/%s.py says (%s%s); "
            "native kernels run it as transformers computes it",
            transformers.__version__,
            config.model_type,
            config.model_type,
            different[0],
            more,
        )


@torch.inference_mode()
def recognise_twin(model: PreTrainedModel, kernels: Kernels, longest: int) -> Declaration:
    """Return what a model is, as a twin of it shows: a narrow one, or else one with its widths.

    Args:
        model: with or without weights.
        kernels: that may run it.
        longest: tokens of the longest sequence.

    Raises:
        NotBatchableError: the model can't run many sequences in one step.
        UnsupportedLayerError: the native kernels can't run it.
    """
    for narrow in NARROWINGS:
        try:
            return recognise(build_twin(model, longest, narrow), kernels, longest)
        except Exception:
            log.debug("a narrow twin of %s shows nothing", type(model).__name__, exc_info=True)
    return recognise(build_twin(model, longest), kernels, longest)


def program_of(model: PreTrainedModel, declared: Declaration) -> ModelProgram:
    """Return what runs where of a model that the native kernels run as declared."""
    layers: list[LayerTargets] = []
    modules = [*(decoder_layers(text_body(model)) or ())]
    for index, each in enumerate(declared.layers):
        module = modules[index // declared.layers_in_one]
        is_own = isinstance(each.mixer, OwnModule)
        name = type(module.get_submodule(each.mixer.module)).__name__ if is_own else type(each.mixer).__name__
        layers.append(LayerTargets(name, Target.MODULES if is_own else Target.NATIVE, Target.NATIVE))
    return ModelProgram(tuple(layers))


def check_modules(
    model: PreTrainedModel, first: ProbeRun, program: ModelProgram, *, special: str | None, is_deterministic: bool
) -> None:
    """Check a model whose modules run, or of which some do.

    Args:
        model: of transformers.
        first: a pass of it or of its twin.
        program: what runs where.
        special: layers whose attention modules run sequence by sequence.
        is_deterministic: whether each sequence must have the same results in any company.

    Raises:
        NotBatchableError: the model can't run many sequences in one step.
        ModelError: a token's results depend on the other tokens of a step, and must not.
    """
    probe = first.probe
    if probe.indexed and (is_deterministic or probe.indexed.keys() - probe.choosing):
        raise NotBatchableError(f"{type(model).__name__} has {INDEXED}, and {program.reason or 'modules'}")
    if is_deterministic and special is not None:
        raise NotBatchableError(f"{program.reason}, and {INVARIANT}")
    if is_deterministic:
        first.check_invariance()


def on_device(
    model: PreTrainedModel, device: torch.device, dtype: torch.dtype, special: str | None = None
) -> ModelProgram:
    """Return the program of a model whose modules run on a device."""
    return _by_modules(model, special, f"it is computed in {dtype} on {device}")


def _by_modules(model: PreTrainedModel, special: str | None, reason: str | None) -> ModelProgram:
    """Return the program of a model that transformers' modules run, with the reason for it."""
    if special is not None:
        by_sequence = f"{type(model).__name__} has {special}, whose attention runs sequence by sequence"
        reason = by_sequence if reason is None else f"{by_sequence}, because {reason}"
    return ModelProgram.uniform(model, Target.MODULES, reason)

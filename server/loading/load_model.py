"""Loads the trunk, the tokenizer and the generation defaults of a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jinja2
import torch

from expert_store import ExpertCatalog
from server.collection import without_collection
from server.device import find_device, is_gpu
from server.engine.interface import SamplingDefaults
from server.kernels.compute_pool import ComputePool
from server.kernels.current_device import current_device
from server.kernels.native.available import OFF, describe_level, kernel_level
from server.kernels.native.library import Kernels
from server.loading.miss_compute import check_miss_compute, place_misses
from server.loading.remote_models import with_cache
from server.memory.budget import host_budget
from server.memory.fit_checks import check_trunk
from server.model.architecture import find_model_class, packs_sequences
from server.model.attention.key_choice import indexers_of
from server.model.checkpoint.checkpoint import Checkpoint
from server.model.checkpoint.description import ModelDescription
from server.model.checkpoint.generation_config import read_generation_config
from server.model.checkpoint.locate import find_original, find_served
from server.model.checkpoint.processor_files import NoImagesError
from server.model.checkpoint.tensor_map import check_trunk_tensors
from server.model.dtype import compute_dtype, suits_bfloat16
from server.model.encoders.image_inputs import ImageInputs
from server.model.from_config.program import program_of_config
from server.model.model_building import build_model
from server.model.multimodal.image_processor import MediaProcessor
from server.model.opening.open_checkpoint import open_checkpoint
from server.model.program import ModelProgram
from server.model.text.chat_template import check_template
from server.model.text.tokenizer import Tokenizer, reserved_option
from server.model.trunk.base_trunk import TrunkFacts
from server.model.trunk_loader import AnyTrunk, load_trunk
from server.setting_values import ModelAlias
from server.settings import ServeSettings, SettingsError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelParts:
    """A model whose experts are still on disk."""

    name: str  # under which it is served
    trunk: AnyTrunk
    device: torch.device
    kernels: Kernels | None  # None if torch computes everything
    compute: str  # dtype, threads and kernels, for the log
    tokenizer: Tokenizer
    eos_token_ids: frozenset[int]
    defaults: SamplingDefaults
    checkpoint: Checkpoint
    description: ModelDescription
    media: MediaProcessor | str  # for images of prompts, or the reason why it takes none
    image_inputs: ImageInputs | None  # of an encoder of images
    template_options: Mapping[str, Any]  # variables of the chat template for all requests

    @property
    def experts_per_layer(self) -> dict[int, int]:
        layers = self.trunk.catalog.layers
        return {layer: len(layers[layer].experts) for layer in self.trunk.facts.text_layers}


def load_model(model: str | None, settings: ServeSettings) -> ModelParts:
    """Find a checkpoint and load everything but its experts.

    Raises:
        ModelError, ExpertStoreError: the model can't be served.
        SettingsError: a setting does not suit the model or the machine.
    """
    return load_checkpoint(*open_model(model, settings), settings)


def open_model(model: str | None, settings: ServeSettings) -> tuple[Checkpoint, str]:
    """Find and open a checkpoint; returns it with the name that it is served under.

    Raises:
        ModelError, CheckpointError: there is none, or a file of it is damaged.
        SettingsError: an alias belongs to another model.
    """
    place, name = find_served(model, settings.revision)
    name = settings.served_model_name or name
    check_aliases(settings.model_alias, name)
    return open_checkpoint(with_cache(place, settings), find_original(settings.config_from)), name


def load_checkpoint(checkpoint: Checkpoint, name: str, settings: ServeSettings) -> ModelParts:
    """Load everything but the experts of a checkpoint; see ``load_model``."""
    num_threads = settings.threads or torch.get_num_threads()
    device = find_device(settings.device)
    check_miss_compute(settings)
    for note in checkpoint.notes():
        log.info("%s: %s", name, note)
    generation = read_generation_config(checkpoint, settings.generation_config, settings.override_generation_config)
    check_chat_settings(settings)
    model_config = checkpoint.read_config()
    level, pool_threads = kernel_level(settings, device), 1 if is_gpu(device) else num_threads
    # Such a model is in float32 only where bfloat16 is slow, so its results need not be better than those in bfloat16.
    rounds_float32 = settings.dtype == "auto" and suits_bfloat16(model_config)
    kernels = None if level is None else Kernels(num_threads, level, rounds_float32=rounds_float32)
    triton_device = device if is_gpu(device) and settings.kernels != OFF else None
    pool = ComputePool(pool_threads, kernels, triton_device)

    def try_layers(dtype: torch.dtype) -> ModelProgram:
        with without_collection():
            model = build_model(model_config, dtype)
            found = checkpoint.map(model)
        check_trunk_tensors(checkpoint.name, model, found)  # the trial takes memory for layers of the config's sizes
        return program_of_config(
            model_config, dtype, kernels, found.catalog, settings.max_model_len, is_deterministic=settings.deterministic
        )

    def load(dtype: torch.dtype) -> AnyTrunk:
        def check_memory(trunk_bytes: int, catalog: ExpertCatalog) -> None:
            check_trunk(settings, trunk_bytes, catalog, dtype=dtype, device=device, budget_bytes=host_budget(settings))
            log.info("loading %s from %s", name, checkpoint.location)

        with current_device(device):
            return load_trunk(
                checkpoint,
                dtype,
                device,
                is_deterministic=settings.deterministic,
                pool=pool,
                max_model_len=settings.max_model_len,
                switch_capacity=settings.switch_capacity,
                check_memory=check_memory,
                sequential_reason=try_layers(dtype).sequential_reason if is_undecided else None,
                codes_experts=settings.device_expert_memory.is_auto,
            )

    # The names of other models tell whether their results are the same in any company.
    is_undecided = settings.deterministic and bool(indexers_of(build_model(model_config, torch.bfloat16)))
    dtype_of = partial(compute_dtype, settings.dtype, model_config, device)
    dtype, if_native = dtype_of(), dtype_of(is_native=True)
    has_choice = dtype != if_native and kernels is not None and not packs_sequences(find_model_class(model_config))
    if has_choice and try_layers(if_native).is_native:
        dtype = if_native
    trunk = load(dtype)
    place_misses(trunk, settings, num_threads)
    check_model_type(settings, name, trunk.facts)
    tokenizer = Tokenizer(checkpoint, trunk.max_model_len, settings.chat_template)
    tokenizer.prepare()
    markers = tokenizer.marker_ids  # a stop that is one token ends a turn like the end tokens
    ends = frozenset(markers[stop] for stop in generation.stops if stop in markers)
    stops = tuple(stop for stop in generation.stops if stop not in markers)
    computing = f", kernels: {describe_level(settings.kernels, level)}" if device.type == "cpu" else ""
    return ModelParts(
        name,
        trunk,
        device,
        kernels,
        compute=f"{device} in {_name_of(dtype)}, threads: {pool.num_threads}{computing}",
        tokenizer=tokenizer,
        eos_token_ids=generation.eos_token_ids | tokenizer.eos_token_ids | ends,
        defaults=SamplingDefaults(**generation.sampling, stop=stops),
        checkpoint=checkpoint,
        description=checkpoint.describe(),
        media=load_media_processor(checkpoint, trunk.facts, settings.chat_template),
        image_inputs=ImageInputs(trunk.config) if trunk.facts.reads_images else None,
        template_options=settings.chat_template_kwargs or {},
    )


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_model_type(settings: ServeSettings, name: str, facts: TrunkFacts) -> None:
    """Check that the model is of the type that the settings want, and takes what they load beside it.

    Raises:
        SettingsError: it is not, or does not.
    """
    fits = {"auto": True, "generate": not facts.is_encoder, "classify": bool(facts.labels)}
    if not fits[settings.model_type]:
        is_for = "is an encoder, which writes no text" if facts.is_encoder else "has no labels"
        raise SettingsError(f"--model-type {settings.model_type}: {name} {is_for}; leave it out or name another model")
    if facts.is_encoder and (settings.serves_adapters or settings.experts_dir is not None or settings.variant):
        raise SettingsError(
            f"{name} is an encoder, which takes no adapters and no expert variants; leave out --adapter, "
            "--adapters-dir, --variant and --experts-dir"
        )


def check_aliases(aliases: Sequence[ModelAlias], name: str) -> None:
    """Check that the model of each alias is served.

    Raises:
        SettingsError: an alias belongs to another model.
    """
    for alias in aliases:
        if alias.model != name:
            raise SettingsError(f"--model-alias {alias}: this server serves {name}; write {alias.name}={name}")


def check_chat_settings(settings: ServeSettings) -> None:
    """Check the chat template and its variables that settings give for all requests.

    Raises:
        SettingsError: the template can't be used, or the name of a variable is reserved.
    """
    options = settings.chat_template_kwargs or {}
    reserved = reserved_option(options)
    if reserved is not None:
        raise SettingsError(f"--chat-template-kwargs must not hold {reserved!r}, which the server sets; leave it out")
    if settings.chat_template is not None:
        try:
            check_template(settings.chat_template, options)
        except jinja2.TemplateError as error:
            reason = str(error).rstrip(".")
            raise SettingsError(f"--chat-template can't be used: {reason}; mend the template") from error


def load_media_processor(
    checkpoint: Checkpoint, facts: TrunkFacts, chat_template: str | None = None
) -> MediaProcessor | str:
    """Return the processor for images of prompts, or the reason why the model takes none."""
    try:
        processor = MediaProcessor(checkpoint, chat_template)
    except NoImagesError as error:
        return str(error)
    if facts.is_encoder_decoder:
        return "this model's prompts go through an encoder, which is not supported with images yet; send text alone"
    if (facts.is_sequential or facts.is_by_sequence) and processor.has_bidirectional_images:
        return "bidirectional attention within images is not supported for this model yet; send text alone"
    return processor

"""The report of `greenroom inspect`, as an object and as a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from expert_store import UNCHANGED
from expert_store.catalog import reads_per_expert
from server.byte_sizes import format_bytes
from server.inspection.memory_fit import MemoryFit
from server.inspection.model_summary import ModelSummary
from server.inspection.throughput_bound import Bandwidths, Traffic, hit_ratios, tokens_per_second
from server.model.recurrent.states import states_bytes

SOURCES = {
    "checkpoint": "its config and safetensors files",
    "packed": "its packed folder",
    "gguf": "its GGUF file",
    "gguf-headers": "the headers of its GGUF file",
    "headers": "its config and the headers of its safetensors files",
    "config": "its config alone, with experts in the dtype of the config",
}


LEAST_GAIN = 0.02  # that is told


def as_object(summary: ModelSummary, plan: MemoryFit, bandwidths: Bandwidths) -> dict[str, Any]:
    """Return the object that ``--json`` prints, in bytes, bytes per second and tokens per second.

    If the model can't be served in this memory, ``refusal`` is the error of `greenroom serve`, and the bounds are those
    of a machine of the same speed with more memory.
    """
    shape, catalog = summary.outline, summary.catalog
    traffic = Traffic(shape.active_trunk_bytes, summary.active_kept_bytes, summary.active_expert_bytes)
    uniform = min(1.0, (plan.host_slots + plan.device_slots) / summary.num_experts)
    on_device = plan.device_slots / summary.num_experts if plan.has_gpu else 1.0
    missing = int((1 - uniform) * catalog.total_bytes)
    return {
        "model": summary.name,
        "architecture": shape.architecture,
        "source": summary.source,
        "dtype": str(shape.dtype).removeprefix("torch."),
        "solo_reason": shape.sequential_reason,
        "program": summary.program.describe(),
        "trunk_bytes": shape.trunk_bytes,
        "trunk_format": summary.trunk_format,
        "trunk_fits": plan.holds_trunk,
        "refusal": plan.refusal,
        "notes": [*summary.notes, *plan.memory.notes],
        "num_unused_tensors": summary.num_unused,
        "experts": {
            "num_experts": summary.num_experts,
            "num_layers": len(catalog.layers),
            "top_k": max(shape.top_k.values()),
            "bytes_each": sorted({layout.slot_bytes for layout in catalog.layouts}),
            "total_bytes": catalog.total_bytes,
            "memory_bytes": summary.kept.total_bytes,  # less where experts are coded as they are read
        },
        "bytes_per_token": {
            "trunk": traffic.trunk,
            "experts": traffic.experts,
            "total": traffic.trunk + traffic.experts,
        },
        "miss": {
            "num_reads": reads_per_expert(catalog),
            "record_gain": bandwidths.record_gain,
            "with_records": tokens_per_second(traffic, bandwidths.with_records, uniform, on_device),
        },
        "prompt_piece": {
            # nearly all experts; missing ones are read once for each piece
            "num_tokens": plan.memory.pass_tokens or plan.memory.batched_tokens,
            "is_pass": plan.memory.pass_tokens > 0,
            "missing_bytes": missing,
            "disk_seconds": missing / bandwidths.disk,
        },
        "kv_cache": {
            "bytes_per_token": sum(group.token_bytes for group in shape.kv_groups),
            "groups": [
                {
                    "window": group.window,
                    "is_chunked": group.is_chunked,
                    "num_layers": group.num_layers,
                    "bytes_per_token": group.token_bytes,
                    "is_latent": bool(group.shapes) and all(layer.is_latent for layer in group.shapes.values()),
                }
                for group in shape.kv_groups
            ],
            "bytes": plan.memory.kv.nbytes,
            "num_tokens": plan.memory.kv.num_tokens,
            "max_model_len": plan.memory.kv.max_model_len,
            "bytes_per_sequence": states_bytes(summary.states),
            "num_sequences": plan.memory.kv.num_slots,
        },
        "memory": {
            "budget_bytes": plan.memory.budget_bytes,
            "least_bytes": plan.least_bytes,
            "process_bytes": plan.memory.process_bytes,
            "step_bytes": plan.memory.first_step_bytes,
            "largest_step_bytes": plan.memory.step_bytes,
            "kv_cache_first_bytes": plan.memory.kv.first_bytes,
            "graph_bytes": plan.memory.graph_bytes,
        },
        "tiers": {
            name: {"budget_bytes": budget, "slots": slots}
            for name, budget, slots in (
                ("host", plan.memory.host_bytes, plan.host_slots),
                ("device", plan.memory.device_bytes, plan.device_slots),
            )
        },
        "bandwidth": {
            "compute_memory": bandwidths.compute,
            "disk": bandwidths.disk,
            "host_to_device": bandwidths.copy,
        },
        "tokens_per_second": {
            "all_in_memory": tokens_per_second(traffic, bandwidths, 1.0),
            "uniform_routing": tokens_per_second(traffic, bandwidths, uniform, on_device),
            "by_hit_ratio": [
                {"hit_ratio": ratio, "bound": tokens_per_second(traffic, bandwidths, ratio, on_device)}
                for ratio in hit_ratios(uniform)
            ],
        },
    }


def as_text(report: dict[str, Any]) -> str:
    """Format the object as a table for people."""
    return "\n".join(_lines(report))


def _lines(report: dict[str, Any]) -> Iterator[str]:
    experts, token, kv = report["experts"], report["bytes_per_token"], report["kv_cache"]
    each = " or ".join(format_bytes(nbytes) for nbytes in experts["bytes_each"])
    yield f"{report['model']}: {report['architecture']} in {report['dtype']}, from {SOURCES[report['source']]}"
    yield from _notes(report)
    form = "" if report["trunk_format"] == UNCHANGED else f", linear layers in {report['trunk_format']}"
    yield _row("trunk", f"{format_bytes(report['trunk_bytes'])} resident{form}")
    yield _row(
        "experts",
        f"{experts['num_experts']} in {experts['num_layers']} layers, {each} each, "
        f"{format_bytes(experts['total_bytes'])}; {experts['top_k']} per layer and token",
    )
    if experts["memory_bytes"] < experts["total_bytes"]:
        yield _row("in memory", f"{format_bytes(experts['memory_bytes'])}: 12 bits a weight, without loss")
    yield _row(
        "a token reads",
        f"{format_bytes(token['total'])}: {format_bytes(token['trunk'])} of trunk, "
        f"{format_bytes(token['experts'])} of experts",
    )
    yield from _kv_cache(kv)
    yield from _refused(report) if report["refusal"] is not None else _fit(report)
    yield "measured"
    names = {"compute_memory": "memory", "disk": "disk", "host_to_device": "host to device"}
    for key, name in names.items():
        if report["bandwidth"][key] is not None:
            yield _row(name, f"{report['bandwidth'][key] / 1e9:.1f} GB/s")
    yield from _miss(report["miss"])
    if report["download"] is not None:
        yield from _download(report["download"])
    yield "upper bound for one sequence"
    yield _row("all in memory", f"{report['tokens_per_second']['all_in_memory']:.1f} tokens/s")
    if report["refusal"] is None:
        yield from _bounds(report)


def _miss(miss: dict[str, Any]) -> Iterator[str]:
    """Yield the line about experts whose parts lie apart in files on this machine."""
    gain = miss["record_gain"]
    if gain is None:
        return
    reads = f"{miss['num_reads']:.2g} reads"
    if gain < LEAST_GAIN:
        yield _row("a miss", f"{reads}, which take no longer than one")
        return
    how = "`greenroom pack` or --repack-cache would make it one"
    yield _row("a miss", f"{reads}; {how}, {gain:.0%} faster: at most {miss['with_records']:.1f} tokens/s")


def _download(download: dict[str, Any]) -> Iterator[str]:
    """Yield the lines about a model that is elsewhere."""
    yield f"over a link of {download['bytes_per_second'] * 8 / 1e6:.0f} Mbit/s, if routing is even"
    started = f"of which the start takes {duration(download['start_seconds'])}"
    yield _row("trunk", f"after {duration(download['trunk_seconds'])}, {started}")
    for count, seconds in download["first_token_seconds"].items():
        yield _row("first token", f"after {duration(seconds)}, of a prompt of {count} tokens")
    yield _row("complete", f"after {duration(download['complete_seconds'])}")
    requests = download["requests_per_miss"]
    yield _row("a miss", f"{requests:g} request{'' if requests == 1 else 's, at the same time'}")


def duration(seconds: float) -> str:
    """Format seconds for people: ``3.2 s``, ``12 min``."""
    if seconds < 100:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"  # noqa: PLR2004


def _refused(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines about a budget in which the model can't be served; the command adds the reason."""
    yield "does not fit"
    yield _row("budget", format_bytes(report["memory"]["budget_bytes"]))
    yield _row("least budget", f"{format_bytes(report['memory']['least_bytes'])} in which the model can be served")


def _fit(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines about the parts of the budget."""
    kv, memory, count = report["kv_cache"], report["memory"], report["experts"]["num_experts"]
    yield "fits"
    context = f"{kv['num_tokens']} tokens; context {kv['max_model_len']}"
    if kv["bytes_per_sequence"]:
        context += f"; recurrent states of {kv['num_sequences']} sequences"
    yield _row("KV cache", f"{format_bytes(kv['bytes'])} for {context}")
    yield _row(
        "memory",
        f"budget {format_bytes(memory['budget_bytes'])}; process {format_bytes(memory['process_bytes'])}, "
        f"steps up to {format_bytes(memory['largest_step_bytes'])}",
    )
    if memory["graph_bytes"]:
        yield _row("CUDA graphs", f"up to {format_bytes(memory['graph_bytes'])} of the GPU's memory (estimated)")
    for name, tier in report["tiers"].items():
        if tier["budget_bytes"]:
            slots = tier["slots"]
            yield _row(
                f"{name} tier",
                f"{slots} of {count} experts ({slots / count:.0%}) in {format_bytes(tier['budget_bytes'])}",
            )
    if 0 < report["tiers"]["device"]["slots"] < count:
        num_tokens = report["prompt_piece"]["num_tokens"]
        yield _row("prompts", f"{num_tokens} tokens a step (--max-batched-tokens), each of which copies experts")
    for note in report["notes"]:
        yield _row("note", note)


def _bounds(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines about speed with experts on disk."""
    for number, entry in enumerate(report["tokens_per_second"]["by_hit_ratio"]):
        if entry["hit_ratio"] < 1:
            note = ", the ratio of uniform routing" if number == 0 else ""
            yield _row(f"hit ratio {entry['hit_ratio']:.2f}", f"{entry['bound']:.1f} tokens/s{note}")
    chunk = report["prompt_piece"]
    if chunk["missing_bytes"]:
        cost = f"up to {format_bytes(chunk['missing_bytes'])} in {chunk['disk_seconds']:.1f} s"
        flag = "--prefill" if chunk["is_pass"] else "--max-batched-tokens"
        yield _row("a prompt reads", f"{cost} per {chunk['num_tokens']} tokens ({flag})")


def _notes(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that not every model has."""
    if report["num_unused_tensors"]:
        yield _row("unused", f"{report['num_unused_tensors']} tensors of the files")
    if report["solo_reason"]:
        yield _row("requests", f"computed one after the other, since {report['solo_reason']}")
    else:
        yield _row("layers", report["program"])


def _kv_cache(kv: dict[str, Any]) -> Iterator[str]:
    """Yield the lines about memory that tokens and sequences use while they run."""
    yield _row("a token keeps", f"{format_bytes(kv['bytes_per_token'])} of KV cache")
    for group in kv["groups"]:
        kind = "their chunk of" if group["is_chunked"] else "the last"
        window = "all tokens" if group["window"] is None else f"{kind} {group['window']} tokens"
        latent = ", as latents" if group["is_latent"] else ""
        yield _row(
            "", f"{group['num_layers']} layers attend to {window}, {format_bytes(group['bytes_per_token'])}{latent}"
        )
    if kv["bytes_per_sequence"]:
        yield _row(
            "a sequence", f"keeps {format_bytes(kv['bytes_per_sequence'])} of recurrent states, whatever its length"
        )


def _row(name: str, value: str) -> str:
    return f"  {name:<15}{value}"

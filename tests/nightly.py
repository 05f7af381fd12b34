"""Names the tests that CI leaves to `make nightly`: most cases of wide sweeps, sanitizers, and the longest trials.

CI is to end in a quarter of an hour on two cores. Of each test of ``sweeps`` it takes a part of the cases.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
ROW = re.compile(r"^\| `(\w+)` \| \w+ \| (.+) \| (.+) \|$", re.MULTILINE)

GPU_TESTS = ("gpu and not nightly", "gpu and nightly")  # runs of them on the emulated card: of CI, and the rest
FEW = ("qwen3_moe", "gpt_oss", "deepseek_v3")
IN_LORA = ("qwen3_moe", "deepseek_v3", "deepseek_v4", "inkling_text")
NAMED = ("qwen3_moe", "deepseek_v3", "qwen3_5_moe", "gpt_oss", "gemma4")  # beside those of each kind
IN_ENGINE = ("qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_next", "glm_moe_dsa", "llama4_text")
WITH_IMAGES = ("qwen3_5_moe", "gemma4", "llama4", "kimi_k25", "glm46v", "ernie4_5_vl_moe", "qwen4_exp", "mistral3")
ON_CARD = (
    "qwen3_moe",
    "deepseek_v3",
    "qwen3_5_moe_text",
    "gpt_oss",
    "gemma4_text",
    "axk2",
    "nemotron_h",
    "lfm2_moe",
    "dbrx",
)
TAKING_OTHER_WEIGHTS = ("gemma4_text", "jamba", "longcat_flash", "qwen3_5_moe_text")  # adapters, variants, packs
ON_A_GPU = ("deepseek_v3-True", "deepseek_v3-False", "gpt_oss-False", "qwen3_moe-False", "deepseek_v3-5")
FORMATS_IN_CHECKPOINTS = (
    *(
        f"qwen3_moe-{name}"
        for name in (
            *("fp8", "mxfp8", "ct_int4_asymmetric", "ct_int8", "ct_fp8_of_channels", "ct_nvfp4", "ct_mxfp4"),
            *("modelopt_nvfp4", "awq", "bitsandbytes", "gptq", "gptq_in_another_order"),
        )
    ),
    *("gpt_oss-mxfp4", "gpt_oss-modelopt_transposed_nvfp4", "step3p7-fp8", "kimi_k25-ct_int4", "deepseek_v3-fp8"),
    "mixtral-awq",
)
FILES = ("qwen3moe", "qwen35moe", "gpt-oss", "deepseek-v3", "gemma4", "llama4", "nemotron_h_moe", "lfm2moe")  # GGUF
TOOL_FORMATS = ("hermes", "qwen-coder", "deepseek-v3.1", "kimi", "harmony", "pythonic", "unknown")
ANSWERS = (*NAMED, "qwen3_next", "nemotron_h", "jetmoe", "switch_transformers", "qwen3moe.gguf", "gemma4.gguf", "mxfp4")
FORMATS_ON_CARD = ("published mxfp4", "published fp8", "pack bfloat16", "pack int8", "pack int4", "GGUF Q8_0")

HUB = "tests/e2e/test_hub_model.py"
TRIALS = (  # prefixes of the names of tests
    "tests/card/test_failures.py",
    "tests/card/test_prompts.py",
    f"{HUB}::test_a_completed_download_of_several_files_is_served_again_without_network",
    f"{HUB}::test_a_download_that_was_killed_is_served_offline_and_goes_on_where_it_was",
    f"{HUB}::test_the_download_from_a_mirror_without_checksums_is_completed_and_served_again_without_network",
    "tests/e2e/test_memory.py::test_what_requests_hold_stays_inside_a_control_group[logprobs-prompt logp]",
    "tests/expert_store/test_random_use.py::TestDevice",
    "tests/faults/test_35_full_disk.py::test_a_disk_that_is_full_from_any_call_on_leaves_the_old_pack_alone",
    "tests/faults/test_36_pack_killed.py::test_after_a_kill_at_any_call_the_pack_is_old_or_new",
    "tests/faults/test_36_pack_killed.py::test_after_an_input_output_error_at_any_call_the_pack_is_old_or_new",
    "tests/fuzz/parsers/test_parsers.py::test_no_parser_fails_in_a_short_fuzzing",
    "tests/fuzz/test_traces.py::test_answers_in_random_traces_are_those_of_the_requests_alone",
    "tests/server/cluster/test_on_ray.py",
    "tests/server/engine/sampling/test_lexer_sizes.py::test_a_grammar_takes_no_more_memory_than_it_holds[states",
    "tests/server/kernels/native/test_sanitizers.py",
    "tests/server/lifecycle/test_torch_setup.py::test_a_torchvision_that_needs_more_of_the_compiler_gets_it",
    "tests/server/lifecycle/test_torch_setup.py::test_a_transformers_that_needs_more_of_the_compiler_gets_it",
    "tests/server/live/test_described_answers.py",
    "tests/soak",
)


def of_each_kind() -> list[str]:
    """Return the families whose attention or expert tensors no earlier one has in docs/models.md."""
    seen: set[str] = set()
    kinds = []
    for name, *facts in ROW.findall(PAGE.read_text("utf-8")):
        if not seen.issuperset(facts):
            kinds.append(name)
            seen.update(facts)
    return kinds


@cache
def sweeps() -> Mapping[str, Collection[object]]:
    """Return the cases of tests that CI runs: values of parameters, of which a case has one, or ids of cases."""
    kinds = {*NAMED, *of_each_kind()}
    on_card, model = {*ON_CARD, *FORMATS_ON_CARD}, "tests/server/model"
    families, native, lora = f"{model}/test_families.py", f"{model}/native_layers", f"{model}/lora"
    files, quantised = f"{model}/checkpoint/gguf/test_gguf_checkpoint.py", f"{model}/quantised"
    card = "tests/card/test_card.py"
    images = f"{model}/multimodal/test_image_parity.py"
    answers = "tests/server/test_program_answers.py::test_commands_give_one_answer_for_a"
    return {
        f"{answers}_family": ANSWERS,
        f"{answers}_gguf_file": ANSWERS,
        f"{answers}_quantised_checkpoint": ANSWERS,
        f"{card}::test_all_functions_that_ran_in_a_capture_are_read_for_what_it_does_not_permit": GPU_TESTS[:1],
        f"{card}::test_the_tests_that_need_a_gpu_pass_without_a_race": GPU_TESTS[:1],
        "tests/card/test_paging.py::test_experts_paged_through_a_card_give_the_logits_of_the_cpu": on_card,
        "tests/e2e/test_pack.py::test_a_pack_that_can_not_be_read_is_told_in_a_line": ["manifest.json", "."],
        "tests/faults/test_22_chat_template.py::test_a_template_that_loops_for_ever_is_stopped": ["loops", "power"],
        "tests/faults/test_30_errors_of_reads.py::test_a_failed_read_is_answered_and_forgotten": ["checkpoint"],
        "tests/faults/test_31_files_that_change_while_open.py::test_answers_are_right_or_errors": ["cut"],
        "tests/faults/test_52_clocks_and_users.py::test_a_clock_that_jumps_ends_no_request_and_releases_no_limit": [
            -86400
        ],
        "tests/faults/test_log_that_nobody_reads.py::test_closed_outputs_do_not_end_the_server": ["0<&- 1>&- 2>&-"],
        "tests/server/engine/test_embeddings.py::test_embeddings_equal_pooled_hidden_states_of_transformers": IN_ENGINE,
        "tests/server/engine/test_models.py::test_batched_requests_equal_transformers_generate": IN_ENGINE,
        "tests/server/engine/test_models.py::test_deterministic_requests_are_batch_invariant_for_any_cache_size": FEW,
        "tests/server/kernels/native/test_lora.py::test_adapters_give_what_merged_weights_give": ["portable", "avx2"],
        "tests/server/kernels/triton/test_experts.py::test_experts_have_the_results_of_torch": [40],
        "tests/server/live/test_tools.py::test_each_family_is_parsed_and_can_be_forced_to_call": TOOL_FORMATS,
        "tests/server/live/test_tools.py::test_only_allowed_tools_are_called": TOOL_FORMATS,
        "tests/server/live/test_tools.py::test_strict_allows_what_a_family_writes": TOOL_FORMATS,
        f"{families}::test_a_checkpoint_with_the_names_of_transformers_gives_the_same_bits": kinds,
        f"{families}::test_a_deterministic_family_is_batch_invariant": kinds,
        f"{families}::test_a_family_is_as_in_docs_models": kinds,
        f"{families}::test_a_family_runs_natively_as_in_docs_models": kinds,
        f"{families}::test_a_pack_of_a_family_gives_the_same_bits": kinds,
        f"{families}::test_the_config_of_a_family_shows_the_facts_of_its_trunk": kinds,
        f"{model}/recognition/test_published_widths.py"
        "::test_a_narrow_twin_shows_what_the_family_declares_of_a_model_at_published_widths": FEW,
        f"{files}::test_linear_layers_stay_quantised_with_the_logits_of_what_they_stand_for": FILES,
        f"{files}::test_native_layers_run_a_file_as_far_as_they_run_its_checkpoint": FILES,
        f"{images}::test_another_image_gives_other_logits": WITH_IMAGES,
        f"{images}::test_images_give_the_logits_of_transformers_own_model": WITH_IMAGES,
        f"{lora}/test_adapter_parity.py::test_native_layers_give_what_peft_gives": IN_LORA,
        f"{lora}/test_adapter_parity.py::test_other_adapters_change_no_bit_of_native_layers": IN_LORA,
        f"{lora}/test_arrow_parity.py::test_native_layers_give_what_arrow_gives": IN_LORA,
        f"{lora}/test_arrow_parity.py::test_other_sequences_change_no_bit_of_native_layers": IN_LORA,
        f"{lora}/test_gate_parity.py::test_native_layers_give_what_the_gate_gives_and_other_sequences_change_no_bit": (
            IN_LORA
        ),
        f"{model}/checkpoint/test_packing.py::test_bfloat16_packs_of_bfloat16_checkpoints_give_the_same_bits": FEW,
        f"{model}/checkpoint/test_packing.py::test_quantised_packs_give_the_results_of_their_dequantised_weights": FEW,
        f"{model}/experts/test_variants.py::test_a_variant_has_the_logits_of_a_checkpoint_with_its_weights": FEW,
        f"{model}/coded/test_coded_weights.py::test_logits_are_those_of_plain_weights": ["qwen3_moe", "gpt_oss"],
        f"{model}/test_cuda.py::test_a_cuda_device_has_the_logits_of_the_cpu": ON_A_GPU,
        f"{model}/test_cuda.py::test_steps_of_graphs_have_the_logits_of_steps_without": ON_A_GPU,
        f"{model}/test_deterministic.py::test_batch_order_chunks_and_cache_size_change_no_bit": FEW,
        f"{model}/cuda_layers/test_attention.py::test_logits_are_those_of_the_modules": ["gemma4_text", "deepseek_v3"],
        f"{model}/test_parity.py::test_every_cache_size_gives_the_same_bits": FEW,
        f"{native}/test_native_images.py::test_native_layers_take_images": WITH_IMAGES,
        f"{native}/test_native_layers.py::test_native_layers_give_what_the_modules_give": kinds,
        f"{native}/test_native_layers.py::"
        "test_native_layers_take_adapters_of_all_linear_layers_that_modules_call_by_token": kinds,
        f"{native}/test_native_layers.py::test_other_sequences_change_no_bit_of_native_layers": kinds,
        f"{native}/test_recurrent_mixers.py::test_each_level_gives_what_modules_give": ["portable", "qwen3_next"],
        f"{native}/test_uses.py::test_adapters_of_all_linear_layers_give_what_peft_gives": TAKING_OTHER_WEIGHTS,
        f"{native}/test_uses.py::test_packed_trunks_give_what_modules_give": TAKING_OTHER_WEIGHTS,
        f"{native}/test_uses.py::test_variants_give_what_modules_give": TAKING_OTHER_WEIGHTS,
        f"{quantised}/test_checkpoints.py::test_a_quantised_checkpoint_gives_the_results_of_its_dequantised_weights": (
            FORMATS_IN_CHECKPOINTS
        ),
    }


def is_nightly(item: pytest.Item) -> bool:
    """Return True if CI leaves out a test."""
    if item.nodeid.startswith(TRIALS):
        return True
    chosen = sweeps().get(item.nodeid.partition("[")[0])
    if chosen is None:
        return False
    case = item.callspec  # type: ignore[attr-defined]  # pytest has no public type for it
    return not any(value in chosen for value in (*case.params.values(), case.id))

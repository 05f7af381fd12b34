"""The families whose decoder layers run natively."""

from __future__ import annotations

NATIVE_FAMILIES = (  # by `model_type`
    "aria_text",
    "deepseek_v2",
    "deepseek_v3",
    "dots1",
    "ernie4_5_moe",
    "exaone_moe",
    "flint",
    "glm4_moe",
    "glm4_moe_lite",
    "gpt_oss",
    "granitemoe",
    "hy_v3",
    "lfm2_moe",
    "minimax_m2",
    "mistral4",
    "mixtral",
    "olmoe",
    "qwen2_moe",
    "qwen3_5_moe_text",
    "qwen3_moe",
    "qwen3_next",
    "sarvam_mla",
    "sarvam_moe",
    "solar_open",
)

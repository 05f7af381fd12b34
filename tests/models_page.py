"""Writes docs/models.md from what every family gives: ``python -m tests.models_page``."""

from __future__ import annotations

import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

import transformers

from tests.families import FAMILIES, LEAN
from tests.family_checks import Refused, Served, examine
from tests.vision import VISIONS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
TEXT = """# Models

Every Mixture-of-Experts family of transformers {version} that writes text, by the `model_type` in its `config.json`.
`python -m tests.models_page` writes this page from what it finds, and `tests/server/model/test_families.py` checks each
line of it.

## Served: {served}

A tiny random checkpoint of each, saved with the names and shapes that transformers publishes, gives stock
transformers' logits (to 1e-4 of their range, in float32) and stock's greedy text: prompts of 1 to 11 tokens in one
ragged batch, that go in three tokens at a time beside decodes, over a cache of as few experts as a token chooses.

A checkpoint with the names that transformers' own modules have gives the same bits, and so does a bfloat16 pack;
`--deterministic` gives the same bits in any company.

Of a multimodal model this is what it makes of text, and stock is the whole model, its towers included. One that takes
any text model of transformers (`internvl`, `mistral3`) is checked with one of several that it is published with.

### Many sequences in a step: {batched}

Attention is what a first pass over the model shows; in chunks, a token sees what is in its own chunk. The
tensors are those that one expert is read from, after the name of its layer; `*` is the expert's number, and where there
is none, one tensor holds all experts of the layer.

Rotary scalings are compared with stock too (`tests/server/model/test_rope.py`). A model with "longrope" serves
sequences of up to its `original_max_position_embeddings`: past them transformers takes other frequencies for all tokens
of a step, those of shorter sequences too. With a longer `--max-model-len`, sequences of any length take the
frequencies of long ones, as in vLLM: long ones give stock's logits, and shorter ones those of a long text's beginning.

| model type | class | attention | tensors of an expert |
| --- | --- | --- | --- |
{batched_rows}

### One sequence after the other: {solo}

What these do with tokens has no place in a step of many sequences. Each is computed by itself, with transformers' own
attention and cache, and its routed experts are paged as all others are; the server's log says so when it starts. More
requests at once are answered in turns, and no prompt uses the beginning of another. Blocks of the KV cache are bytes
that are counted: they limit how many tokens run at once. `--deterministic` runs prompts token by token.

The same happens to any other model whose attention is found to need more than causality and a window, or whose tokens
mix by a layer that nobody knows.

Encoder-decoder models answer a prompt, which is their encoder's input, on the completions and the chat route alike.
Their decoder begins with `decoder_start_token_id` and, if the checkpoint's `generation_config.json` names one,
`forced_bos_token_id` (of NLLB, the language to translate into); neither is written out or counted. Prompt tokens are
the encoder's; prompt and answer together are at most as long as the model's positions. `echo` and logprobs of the
prompt are refused. Switch Transformers lets an expert take `expert_capacity` tokens of a sequence and NLLB-MoE a
fraction of them; the others pass by the experts, as the models are defined. transformers 5.24 runs only the first two
experts of NLLB-MoE; here all run, and are compared with a plain sum over them.

| model type | class | has | tensors of an expert |
| --- | --- | --- | --- |
{solo_rows}

### Native decoder layers: {lean}

{lean_families}.

These run on fused native operations instead of transformers' modules
([architecture.md](architecture.md#native-decoder-layers)): the same logits to 1e-5 of their range in float32, the same
bits in any batch, paged or not (`tests/server/model/lean/test_lean.py`). All others run their linear layers and experts
natively where the format and the activation are known, and the log says where not.

## Quantised checkpoints

Families are served from checkpoints that come quantised, too, in the formats below. A tiny checkpoint of each format,
in the layout and with the config that are published, gives stock's logits and greedy text with the weights that the
format's own library makes of it (transformers for MXFP4 and FP8, compressed-tensors for its own formats and for AWQ;
for GPTQ an independent reading of its definition): MXFP4 with `gpt_oss`, every other with `qwen3_moe`, the usual ones
with `mixtral` and `deepseek_v3`, and FP8 with families whose tensors are unlike those
(`tests/server/model/test_quantised_checkpoints.py`).

Experts stay quantised in their slots, so a budget holds two to four times as many; weights are dequantised, exactly,
while an expert runs. The table is of one expert of Qwen3-30B-A3B's size with bfloat16 rows, against the same in
bfloat16, on one thread of a machine with AVX-512 ([log.md](log.md)).

| `quant_method` | formats | bytes of an expert | time of 1 row | of 64 |
| --- | --- | --- | --- | --- |
| `mxfp4` | MXFP4 as gpt-oss has it | 0.27 | 3.1 | 2.6 |
| `fp8`, `mxfp8` | E4M3; scales of blocks, outputs or all, as numbers or exponents | 0.50 | 3.1 | 2.4 |
| `compressed-tensors` | pack-quantized of 4 bits, groups or channels | 0.31 | 0.2 | 2.6 |
| | pack-quantized of 8 bits | 0.51 | 2.3 | 1.9 |
| | int-quantized of 8 bits | 0.50 | 0.3 | 1.4 |
| | float-quantized | 0.50 | 3.1 | 2.4 |
| | nvfp4-pack-quantized, mxfp4-pack-quantized | 0.28 | 4.2 | 3.2 |
| `awq` | 4 bits of the GEMM kernel | 0.28 | 0.5 | 2.7 |
| `gptq` | 4 bits, both versions of zeros, `desc_act` too | 0.28 | 0.5 | 2.7 |
| | 8 bits | 0.51 | 2.3 | 1.9 |

4-bit integers are repacked while they are read, 1 to 3 ms an expert on a reading thread. Their bytes are of groups of
128 inputs, and of 32 with compressed-tensors; float16 scales take more in a slot than on disk, so that groups of 32 of
AWQ or GPTQ take 0.38. Where a format is slow to run, `greenroom pack --weights int4` or `int8` makes another of it that
is not, and rounds once more.

**What is not packed.** Everything but the experts is dequantised once, when it is loaded, into `--dtype`: the trunk
takes as much memory as that of the bfloat16 checkpoint, unless `greenroom pack --trunk` packed it. Checkpoints
whose config says float16 are computed in bfloat16 where that is fast.

**What is ignored.** Activations are not quantised, whatever a checkpoint says of them (`activation_scale`,
`input_scale`, a scheme for the KV cache): what is served is the weights.

**What is refused**, in one line that names it: bitsandbytes, GGUF, AQLM, HQQ, Quark, ModelOpt and every other method;
2 and 3 bits; AWQ for other kernels; GPTQ in Marlin's layout or with rules for single modules; sparse or rotated
compressed-tensors; experts of DeepSeek-V4 in FP4. So are a part that is missing or has the wrong shape. Experts of one
tensor in bfloat16 that were published apart when they were quantised, as compressed-tensors does with Llama 4's, have
no place yet.

## With images: {with_images}

{images}.

Prompts with images through a tiny image processor of each give the whole stock model's logits and the greedy text of
its `generate`: two prompts with different images and one of text in one ragged batch, or one after the other where
that is how the family runs, whole, in pieces of five tokens and token by token (`tests/server/model/test_images.py`).
Images of other families go the same way, and are not checked. Where sequences run one after the other, images are
refused whose tokens see those that follow, and those for an encoder that reads prompts. Video and sound are not taken.

## Refused: {refused}

Each is refused by its `config.json` alone, before any weight is read.

| model type | reason |
| --- | --- |
{refused_rows}
"""


def compose(results: Sequence[Served | Refused]) -> str:
    """The page of some results."""
    served = [result for result in results if isinstance(result, Served)]
    batched, solo = ([str(result) for result in served if result.is_solo == is_solo] for is_solo in (False, True))
    refused = [str(result) for result in results if isinstance(result, Refused)]
    return TEXT.format(
        version=transformers.__version__,
        served=len(served),
        batched=len(batched),
        batched_rows="\n".join(batched),
        solo=len(solo),
        solo_rows="\n".join(solo),
        lean=len(LEAN),
        lean_families=textwrap.fill(", ".join(f"`{model_type}`" for model_type in LEAN), 120),
        with_images=len(VISIONS),
        images=", ".join(f"`{model_type}`" for model_type in sorted(VISIONS)),
        refused=len(refused),
        refused_rows="\n".join(refused),
    )


def main() -> None:
    """Examine every family and write the page."""
    results = []
    for model_type in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            results.append(examine(model_type, Path(folder)))
    PAGE.write_text(compose(results), "utf-8")


if __name__ == "__main__":
    main()

"""Test every family and write docs/models.md from the results: ``python -m tests.models_page [--native]``."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import transformers

from server.model.families.registry import gguf_architectures
from tests.families import FAMILIES
from tests.family_checks import Refused, Served, examine
from tests.family_programs import BATCHED, FamilyProgram, program_of
from tests.full_width.published import PUBLISHED
from tests.vision import VISIONS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
TEXT = """# Models

This page lists every Mixture-of-Experts family of transformers {version} that generates text, by the `model_type` in
its `config.json`, and `step3p5`, whose checkpoints the class of Step-3.7 computes. `python -m tests.models_page` writes
it from test results, and `tests/server/model/test_families.py` checks each of its lines.

## Served: {served}

Each family is tested with a tiny random checkpoint that has the names and shapes that transformers publishes.
Greenroom's logits equal those of transformers to 1e-4 of their range, in float32, and its greedy text is the same. The
prompts have 1 to 11 tokens and form one ragged batch; prefill takes three tokens at a time beside decodes, and the
cache has only as many experts as a token chooses.

A checkpoint with the names of transformers' own modules gives the same bits, and so does a bfloat16 pack. With
`--deterministic` the bits are the same in any batch.

For a multimodal model these tests cover text, and the reference is the complete model, including its towers. A model
that takes any text model of transformers (`internvl`, `mistral3`) is tested with one of the text models that it is
published with.

### Many sequences in a step: {batched}

The attention column is what a probing forward pass finds; with chunks, a token sees only its own chunk. The last column
lists the tensors of one expert, after the name of its layer. `*` is the expert's number; without it, one tensor holds
all experts of the layer.

Rotary scalings are compared with transformers, too (`tests/server/model/attention/test_rope.py`). A model with
"longrope" serves sequences of up to its `original_max_position_embeddings`: for longer ones transformers changes the
frequencies for all tokens of a step, including those of shorter sequences. With a longer `--max-model-len`, all
sequences use the frequencies for long ones, as in vLLM: long sequences give transformers' logits, and shorter ones
those of the beginning of a long text.

*Sequence by sequence* means: experts, MLPs, norms and the head run on the rows of all sequences. The attention module
of transformers is called for one sequence after the other, or once for the single new tokens of several sequences, if a
trial shows that the module can do so (`inkling2_loop`). The module's states of a token lie in the blocks of the KV
cache, so prompts are computed in chunks and prefixes are shared (not by `unlimited_ocr`, where the states of a token
depend on the end of the prompt). The compressed keys of DeepSeek-V4 lie in the blocks, too, each with its last token,
so a step compresses only new tokens. On [native layers](#native-decoder-layers), attention takes all sequences of a
step together, in these families as well (DeepSeek-V4, Inkling, Inkling 2, Qwen4 Exp).

The index of DeepSeek-V4 scores a compressed key by the sum of its heads' positive products, so several keys of a text
may have the score 0. If the choice has to divide such keys, transformers' choice changes with the number of keys after
the token. Greenroom chooses the keys that transformers chooses with no key after the token, as in decoding.

| model type | class | attention | tensors of an expert |
| --- | --- | --- | --- |
{batched_rows}

### One sequence after the other: {sequential}

These families can't share a step with other sequences. Each sequence is computed by itself with transformers' own
attention and cache, and its routed experts are paged as usual; the log says so at the start. Concurrent requests run
alternately, and prompts do not share prefixes. Blocks of the KV cache only count bytes: they limit how many tokens run
at once. `--deterministic` computes prompts token by token.

Families with an indexer whose layers do not run natively, and those whose attention runs sequence by sequence, share
steps, but not with `--deterministic`, where they run as here.

The same applies to any other model that mixes tokens in a layer of an unknown kind, or whose attention needs more than
causality and a window and does not run on a part of a text. What stays here is encoder-decoder models: an encoder reads
the complete prompt at once, and the decoder's cross-attention has its own keys for each sequence, so that there is no
prefix to share and no chunk to continue.

Encoder-decoder models answer a prompt, which is the encoder's input, on the completions and the chat route. The
decoder begins with `decoder_start_token_id` and, if the checkpoint's `generation_config.json` has it,
`forced_bos_token_id` (for NLLB the target language); neither is returned or counted. Prompt tokens are the encoder's.
Prompt and answer together are at most as long as the model's positions. `echo` and logprobs of the prompt are
refused. In Switch Transformers an expert takes at most `expert_capacity` tokens of a sequence, in NLLB-MoE a fraction
of them; the other tokens skip the experts, as the models define it. `--switch-capacity F` lets an expert of Switch
Transformers take F times its even share of a prompt instead, and `usage.greenroom.dropped_tokens` counts the others.
transformers 5.25 runs only the first two experts of NLLB-MoE; Greenroom runs all of them, and the tests compare with
a plain sum over them.

| model type | class | has | tensors of an expert |
| --- | --- | --- | --- |
{sequential_rows}

### Encoders

An encoder reads whole sequences in both directions and writes no text: it serves `/v1/embeddings` and, if it was
trained to classify, `/v1/classify` ([api.md](api.md#labels)). Many sequences share a step, each of them whole, so an
input is no longer than `--max-batched-tokens`. The experts are paged as those of any model, and read in the order of
the layers where every pass uses all; `/v1/models` lists the labels. Adapters and expert variants are for decoders.

| model type | class | reads | tensors of an expert |
| --- | --- | --- | --- |
| `greenroom_moe` | GreenroomMoeForSequenceClassification | text | those of `mixtral` |
| `greenroom_moe` | GreenroomMoeForImageClassification | images | the same |

Their routers are those of [routers.md](routers.md); the bundled classifier is one. `nomic-embed-text-v2-moe` is
refused: transformers' `nomic_bert` has no experts, and code that a checkpoint brings is never run.

{native_section}
## Other model types

Some publishers give an architecture that transformers has a type of their own, with code in the checkpoint. Greenroom
never runs such code. It reads these checkpoints as those of the type that computes them, with equal logits
(`server/model/checkpoint/model_types.py` names the sources):

| `model_type` | served as |
| --- | --- |
| `kimi_k2` (Kimi-K2, K2-Thinking) | `deepseek_v3` |
| `bailing_moe_v2`, and `bailing_moe` of BailingMoeV2ForCausalLM (Ling and Ring 2.0) | `sarvam_moe` |
| `ernie4_5_moe_vl` (ERNIE-4.5-VL as published) | `ernie4_5_vl_moe` |
| `step3p5` (Step-3.5-Flash) | the text part of `step3p7`, with a head of its own |

The folder must have a `tokenizer.json`. Any other type that transformers lacks is refused.

## Quantised checkpoints

Greenroom also serves checkpoints in the quantised formats below. The tests use a tiny checkpoint of each format, with
the published layout and config. Logits and greedy text equal those of transformers with the weights as the format's own
library dequantises them: transformers for MXFP4 and FP8, compressed-tensors for its own formats and for AWQ,
bitsandbytes for its own, and an independent implementation of the definition for GPTQ and for Model Optimizer's NVFP4.
MXFP4 is tested with `gpt_oss`, every other format with `qwen3_moe`, the usual ones with `mixtral` and `deepseek_v3`,
and FP8 and NVFP4 with families that have other tensors (`tests/server/model/quantised/test_checkpoints.py`).

Experts stay quantised in their slots, so a budget holds two to four times as many. Weights are dequantised exactly
while an expert runs. The table compares one expert of Qwen3-30B-A3B's size and bfloat16 rows with the same expert in
bfloat16, on one thread of a machine with AVX-512
([results](../benchmarks/results/2026-11-25-epyc/published-formats.json)).

| `quant_method` | formats | bytes of an expert | time of 1 row | of 64 |
| --- | --- | --- | --- | --- |
| `mxfp4` | MXFP4 as gpt-oss has it | 0.27 | 3.1 | 2.6 |
| `fp8`, `mxfp8` | E4M3; scales of blocks, outputs or all, as numbers or exponents | 0.50 | 3.1 | 2.4 |
| `compressed-tensors` | pack-quantized of 4 bits, groups or channels | 0.31 | 0.2 | 2.6 |
| | pack-quantized of 8 bits | 0.51 | 2.3 | 1.9 |
| | int-quantized of 8 bits | 0.50 | 0.3 | 1.4 |
| | float-quantized | 0.50 | 3.1 | 2.4 |
| | nvfp4-pack-quantized, mxfp4-pack-quantized | 0.28 | 4.2 | 3.2 |
| `modelopt` | FP8 of matrices, outputs or blocks, MXFP8 | 0.50 | 3.1 | 2.4 |
| | NVFP4 (W4A4, W4A8, W4A16), MXFP4; several in one model (MIXED_PRECISION) | 0.28 | 4.2 | 3.2 |
| `awq` | 4 bits of the GEMM kernel | 0.28 | 0.5 | 2.7 |
| `gptq` | 4 bits, both versions of zeros, `desc_act` too | 0.28 | 0.5 | 2.7 |
| | 8 bits | 0.51 | 2.3 | 1.9 |
| `auto-round` | AutoRound's own: the formats of `gptq` and `awq` | | | |
| `bitsandbytes` | NF4 and FP4, with double quantisation or without | 0.28 | | |
| | int8 (LLM.int8) | 0.50 | | |
| MLX's `quantization` | 4 bits (`affine`), of the families below | 0.31 | | |
| | 8 bits | 0.55 | | |

4-bit integers are repacked while they are read, in 1 to 3 ms an expert on a reader thread. The bytes are for groups of
128 inputs, or 32 with compressed-tensors. float16 scales take more in a slot than on disk, so AWQ or GPTQ with groups
of 32 takes 0.38. If a format is slow, `greenroom pack --weights int4` or `int8` converts it to a faster one and rounds
once more.

**Trunk.** Everything but the experts is dequantised at loading into `--dtype`. The trunk takes as much memory as that
of the bfloat16 checkpoint, unless `greenroom pack --trunk` packed it. Checkpoints whose config has float16 are computed
in bfloat16 where that is fast.

**Ignored.** Activations are not quantised, even if a checkpoint asks for it (`activation_scale`, `input_scale`, a
scheme for the KV cache and its scales); only the weights are used.

**bitsandbytes** quantises linear layers. Transformers 4 had each expert as such; checkpoints that transformers 5 saved
have their experts in bfloat16, and are served so.

**MLX.** Of `glm4_moe`, `mixtral`, `olmoe`, `qwen2_moe` and `qwen3_moe` a conversion stacks the experts and changes
nothing else, so these are served, unquantised ones too. All layers run through modules if experts have 8 bits, whose
zeros are no integers; `greenroom pack --weights int8` makes them native.

**Refused**, in one line with the reason: AQLM, HQQ, Quark, quanto, and every other method; integers of ModelOpt, and
its factors of inputs (`NVFP4_AWQ`, `NVFP4_SVD`, `pre_quant_scale`); 2 and 3 bits; AWQ for other
kernels; GPTQ in Marlin's layout; GPTQ or AutoRound with rules for single modules; sparse or rotated compressed-tensors;
FP4 experts of DeepSeek-V4; missing parts and parts of the wrong shape. Other checkpoints that MLX converted, and
uploads in Mistral's own format alone (`params.json`, `consolidated*.safetensors`), are named as such; of an upload in
both formats, Mistral's copy is neither downloaded nor read.

**Names.** A checkpoint may have the tensors of its experts as the family does, or as llm-compressor and AutoRound write
them for every family: a linear layer each, `experts.*.gate_proj`, `up_proj` and `down_proj`, with a bias if the family
has biases. Checkpoints that these tools made are among the tests (`tests/quantised_by_tools/`).

{gguf_section}

## With images: {with_images}

{images}.

Prompts with images, through a tiny image processor of each family, give the logits of transformers' complete model and
the greedy text of its `generate`. The tests use two prompts with different images and one of text, in one ragged batch,
or one after the other where the family runs that way. Prompts are computed in one step, in chunks of five tokens, and
token by token (`tests/server/model/multimodal/test_image_parity.py`). Images of other families take the same path, but
are not tested. Families whose attention runs sequence by sequence, or that run one sequence after the other, refuse
images whose tokens attend to later ones, and encoder-decoder models refuse all images. Video and audio are not
supported.

## Refused: {refused}

Each is refused by its `config.json`, before any weight is read.

| model type | reason |
| --- | --- |
{refused_rows}
"""


Result = TypeVar("Result")

GGUF_HEADING = "## GGUF"
GGUF = (
    GGUF_HEADING
    + """

`greenroom serve FILE.gguf` serves a model as llama.cpp's converter wrote it, with its tokenizer and chat template. A
model in several files (`NAME-00001-of-00003.gguf`) is given by any of them, or by its folder. Experts are read by byte
range from the file, and stay quantised in their slots. `greenroom serve OWNER/NAME:Q4_K_M` downloads that file of a
repository and serves it; without a tag, or with an unknown one, it lists what there is. `greenroom inspect
OWNER/NAME:Q4_K_M` reads the headers of its files by ranges and downloads nothing. `greenroom serve ollama:NAME`
serves a model of Ollama's store, and the folder of LM Studio works like any other
([migrating.md](migrating.md#files-of-ollama-and-lm-studio)).

- **Architectures**: {architectures}. Files of these, written by llama.cpp's converter, have
  transformers' logits of the checkpoint that each was made from (`tests/server/model/checkpoint/gguf/`). Among them are
  variants: `deepseek2` is DeepSeek V2, V2 Lite, V3 and R1, Kimi K2 and GLM-4.7-Flash, also in older files with one
  `attn_kv_b`; `granitemoe` is Granite with and without shared experts; `qwen3vlmoe` is the text part of Qwen3-VL. Other
  architectures are refused by their names, such as `bailingmoe2`, for which transformers has no class.
- **Types of weights**: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, IQ4_XS, Q2_K to Q6_K, MXFP4, NVFP4, IQ1,
  IQ2, IQ3, TQ1 and TQ2 have native products, in any mixture. With one stream, IQ1 to IQ3 and TQ take 0.4 to 1 times
  the time of Q8_0 on a processor with AVX-512 VBMI; others look up number by number, and are slower. The
  factors that the converter writes beside NVFP4 matrices (`.scale`) are applied; those of inputs (`.input_scale`) are
  for arithmetic in NVFP4 alone, and ignored.
- **Keys of the header**: Greenroom reads each key that llama.cpp reads for these architectures and that changes the
  text, older keys such as `rope.scale_linear` too. It refuses a value that the architecture is not computed with. The
  log names all other keys (`server/model/checkpoint/gguf/known_keys.py`).
- **Trunk**: linear layers, embeddings and the head stay in the file's types, also where the converter moved columns or
  split a matrix. Looking up a token dequantises its row. A head that is the table of embeddings is in memory once.
  Vectors, small matrices and the joined `attn_kv_b` of old files are dequantised at loading into `--dtype`.
- **Tokenizer**: kinds `gpt2`, `llama` and `gemma4`. Texts of many scripts have llama.cpp's tokens for each name of a
  pre-tokenizer (`python -m tests.gguf.compare_tokenizers`). Where llama.cpp simplifies a model's own pattern, that of
  the model counts: combining marks and capitals beyond ASCII with `gpt-4o`, `llama4`, `minimax-m2` and `tekken`,
  changes of case with `kimi-k2`, the wide space of Chinese with `deepseek-llm`, spaces after special tokens with
  Phi-3's. Other kinds and unknown names are refused by name.
- **From the original**: with `--config-from MODEL`, a folder or a hub id, config, tokenizer, chat template and sampling
  defaults come from the model that the file was made from. Of a hub model its weights are not downloaded. A model of
  other shapes is refused. Use it where the metadata is wrong or of a kind that Greenroom does not know, such as an
  unknown pre-tokenizer.
- **Packed**: `greenroom pack FILE.gguf OUT` writes a pack with the file's config and tokenizer. Quantised experts and
  matrices of the trunk keep the file's types, and the pack gives the file's bits. `--weights int8` and `--trunk int8`
  round what is dequantised again; of a quantised file this loses more than packing the original would, and the command
  says so. Greenroom writes no GGUF: use llama.cpp's `convert_hf_to_gguf.py` and `llama-quantize`.
- **Adapters and variants**: LoRA adapters work over every file. An expert variant is another GGUF file of the same
  architecture and types, of which experts and routers count, or is in safetensors. Its numbers are rounded to the types
  of the base's experts then: Q2_K to Q6_K, Q4_0 to Q8_0, IQ4_NL, IQ4_XS and MXFP4, without llama.cpp's search for the
  best scales. Over F32, F16 and BF16 experts it has the bits that it gives over the checkpoint
  (`tests/e2e/test_gguf_weights.py`). Over IQ1 to IQ3, TQ and NVFP4, a variant in safetensors is refused: all experts of
  a layer have slots of one type, and Greenroom does not round to these.
- **Checked**: `greenroom verify FILE.gguf` reads every byte and finds scales that are NaN or infinite. The format has
  no checksums.
- **Not read**: images (`mmproj` files), heads that predict further tokens (MTP), dense models.
"""
)
NATIVE_HEADING = "### Native decoder layers"
NATIVE = (
    NATIVE_HEADING
    + """

Of {batched} families that share steps, {native} run completely on fused native operations instead of transformers'
modules ([architecture.md](architecture.md#native-decoder-layers)): the same logits to 1e-5 of their range in float32,
and the same bits in any batch, paged or not (`tests/server/model/native_layers/test_native_layers.py`).

Recurrent layers of a kind that the kernels do not have, as in {hybrids} families, are transformers' modules among
native attention, routers, experts and MLPs (`tests/server/model/native_layers/test_hybrids.py`). Such a model needs
`--deterministic` for the same bits in any batch. All others run their linear layers and experts natively if the format
and the activation are supported; the log lists those that do not.

The table is what a trial of the config that the tests take finds in float32. Settings of a config may change it, but no
numbers of a checkpoint's weights: `greenroom inspect` tells what runs where, and why, for each.
`python -m tests.models_page --native` writes this section alone. All families of the table share steps; the third
column tells what attention computes at once.

The kernels lack these parts of the others:

- Inkling 2 with loops (`inkling2_loop`): layers that run several times.
- Unlimited-OCR: attention to the whole prompt and to a window of what follows it.

| model type | runs natively | attention at once | why not all |
| --- | --- | --- | --- |
{rows}

### Published sizes at full width

`make nightly` checks these models with the numbers of their published configs, but for layers (two to five, of each
kind) and the vocabulary, and with weights like trained ones: heavy tails, norms of 0.1 to 20, channels of 100 to 5,000
in the residual stream, routers whose rows have much in common (`tests/full_width/`). All layers run natively. In
float32, routers choose what transformers' own choose, and logits differ from transformers' by at most 1e-4 of their
standard deviation; this is without the dense layers before the experts of DeepSeek-V3 and Kimi-K2. In bfloat16, the
distance from transformers in float32, for the same experts, is at most 1.5 times that of transformers' modules in
bfloat16, or 2^-8 a layer. With GGUF's types it is at most 3 times as large as theirs, because rows are rounded to int8
in groups of 32. Llama-4-Scout is not compared yet.

| model | model type | safetensors | GGUF |
| --- | --- | --- | --- |
{sizes}
"""
)


def compose_gguf() -> str:
    """Return the section about GGUF files."""
    names = ", ".join(f"`{name}`" for name in gguf_architectures())
    return GGUF.replace("{architectures}", names)


def compose_native(programs: Sequence[FamilyProgram]) -> str:
    """Return the section about native layers."""
    return NATIVE.format(
        batched=len(programs),
        native=sum(each.program.is_native for each in programs),
        hybrids=sum(each.program.is_hybrid for each in programs),
        rows="\n".join(map(str, programs)),
        sizes="\n".join(f"| {name} {published}" for name, published in PUBLISHED.items()),
    )


def replace_section(page: str, heading: str, section: str) -> str:
    """Return a page with another section of a heading."""
    before, rest = page.split(f"{heading}\n")
    return before + section + rest[rest.index("\n## ") :]


def compose(results: Sequence[Served | Refused], programs: Sequence[FamilyProgram]) -> str:
    """Return the text of the page."""
    served = [result for result in results if isinstance(result, Served)]
    batched, sequential = (
        [str(result) for result in served if result.is_sequential == is_sequential] for is_sequential in (False, True)
    )
    refused = [str(result) for result in results if isinstance(result, Refused)]
    return TEXT.format(
        version=transformers.__version__,
        served=len(served),
        batched=len(batched),
        batched_rows="\n".join(batched),
        sequential=len(sequential),
        sequential_rows="\n".join(sequential),
        native_section=compose_native(programs),
        gguf_section=compose_gguf().rstrip(),
        with_images=len(VISIONS),
        images=", ".join(f"`{model_type}`" for model_type in sorted(VISIONS)),
        refused=len(refused),
        refused_rows="\n".join(refused),
    )


def main() -> None:
    """Test every family and write the page, or one of its sections."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--native", action="store_true", help="write only the section about native layers")
    parser.add_argument("--gguf", action="store_true", help="write only the section about GGUF files")
    given = parser.parse_args()
    if given.gguf:
        page = replace_section(PAGE.read_text("utf-8"), GGUF_HEADING, compose_gguf())
    else:
        programs = [in_folder(program_of, model_type) for model_type in BATCHED]
        if given.native:
            page = replace_section(PAGE.read_text("utf-8"), NATIVE_HEADING, compose_native(programs))
        else:
            page = compose([in_folder(examine, model_type) for model_type in FAMILIES], programs)
    PAGE.write_text(page, "utf-8")


def in_folder(find: Callable[[str, Path], Result], model_type: str) -> Result:
    """Call a function with a folder that is deleted then."""
    with tempfile.TemporaryDirectory() as folder:
        return find(model_type, Path(folder))


if __name__ == "__main__":
    main()

"""Quantises a GGUF file with llama.cpp: ``quantise_gguf.py IN.gguf OUT.gguf Q8_0 --threads 2``."""

from __future__ import annotations

import argparse

import llama_cpp as llama

FILE_TYPES = {"Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15, "IQ4_XS": 30, "MXFP4_MOE": 38}  # ``llama_ftype``


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("out")
    parser.add_argument("type", choices=FILE_TYPES)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = FILE_TYPES[options.type], options.threads
    if llama.llama_model_quantize(options.source.encode(), options.out.encode(), parameters):
        raise SystemExit(f"llama.cpp could not quantise {options.source}")


if __name__ == "__main__":
    main()

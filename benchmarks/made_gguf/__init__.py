"""GGUF files of published shapes with random weights, for ``benchmarks.full_size``."""

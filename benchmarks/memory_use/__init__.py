"""Parts of ``benchmarks.memory``."""

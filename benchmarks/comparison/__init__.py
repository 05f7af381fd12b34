"""Parts of ``benchmarks.compare``."""

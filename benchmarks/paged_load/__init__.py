"""Parts of ``benchmarks.full_size``."""

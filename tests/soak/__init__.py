"""A soak: mixed traffic with faults, and what grows under it."""

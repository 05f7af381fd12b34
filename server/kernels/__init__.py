"""Compute: backends that run the experts of a layer, weight formats, and compute threads."""

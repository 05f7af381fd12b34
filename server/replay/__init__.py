"""Comparison of cache policies and sizes on routing logs, for `greenroom replay`."""

"""Recorded routing: its files, its replay, and the optimum of a recent window."""

"""Reads from disk, and copies between host and device."""

"""Finds, downloads, maps, packs and loads checkpoints."""

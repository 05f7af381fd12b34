"""Opens checkpoints of all formats, reads variants of their experts and packs them."""

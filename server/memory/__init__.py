"""The memory budget: planned at start, moved between experts and KV cache while serving, and watched."""

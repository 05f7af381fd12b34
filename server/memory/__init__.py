"""The memory budget: planned at the start, shared out again as requests come and go, and watched."""

"""Runs the routed experts of a step, records their cost, and finds routers for prefetching."""

"""The trunk: a model without its routed experts, prepared for steps, and what can be told of it."""

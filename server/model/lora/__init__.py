"""LoRA adapters: low-rank additions to the model's linear layers and experts, for single sequences of a step."""

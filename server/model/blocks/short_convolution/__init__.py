"""Short convolution: a causal convolution of each channel between two gates."""

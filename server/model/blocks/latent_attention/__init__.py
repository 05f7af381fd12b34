"""Multi-head latent attention over paged latents."""

"""The adapters of one step: which tokens they change, and by what."""

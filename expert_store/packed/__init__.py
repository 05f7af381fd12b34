"""The packed format: one aligned, checksummed record per expert; its manifest, reader and writer."""

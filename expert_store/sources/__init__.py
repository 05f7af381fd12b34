"""Where the bytes of experts come from: files, by one interface."""

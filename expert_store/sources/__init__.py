"""Sources of the bytes of experts, such as files, with one interface."""

"""The command `greenroom`: one module per subcommand."""

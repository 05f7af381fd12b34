"""Runs the command as ``python -m greenroom``."""

from server.cli.main import main

if __name__ == "__main__":
    main()

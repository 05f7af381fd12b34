"""`greenroom top`: watch a server's experts from a terminal."""

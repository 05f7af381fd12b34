"""`greenroom top`: a live view of a server's experts in a terminal."""

"""`greenroom chat`: talk to a server from a terminal."""

"""`greenroom chat`: a chat with a model in a terminal."""

"""`greenroom doctor`: what of this machine matters for serving, and what to set. What can't be read says so."""

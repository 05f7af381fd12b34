"""`greenroom inspect`: what a model takes, and how fast it can be at best."""

"""The ways in which modules run the experts of their layers; each step has one of them."""

"""`greenroom replay`."""

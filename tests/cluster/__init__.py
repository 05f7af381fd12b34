"""Long tests of replicas on Ray Serve."""

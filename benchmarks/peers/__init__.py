"""Scripts that the peers' own interpreters run; they import nothing of Greenroom."""

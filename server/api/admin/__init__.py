"""Routes for administrators: experts and running requests."""

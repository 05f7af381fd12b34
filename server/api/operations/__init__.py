"""Routes for operators: health, metrics, version, dashboard."""

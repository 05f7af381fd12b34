"""Metrics, logs, traces and routing logs."""

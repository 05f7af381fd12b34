"""Access of callers: keys, policies, limits, hosts and origins, and the audit log."""

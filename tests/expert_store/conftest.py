"""Fixtures of the store's tests."""

from tests.expert_store.late_device import check_order, late_devices

__all__ = ["check_order", "late_devices"]

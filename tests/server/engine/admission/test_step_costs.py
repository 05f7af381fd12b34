"""The fitted cost of decode steps."""

from __future__ import annotations

import numpy as np

from server.engine.admission.step_costs import StepCosts


def test_costs_are_found_from_steps() -> None:
    costs = StepCosts()
    for touched, missed in [(10, 2), (40, 9), (25, 0), (60, 30), (33, 5)] * 20:
        costs.add(0.05 + 0.002 * touched + 0.004 * missed, 0.004 * missed, touched, missed)
    seconds = costs.seconds(np.array([20.0, 50.0], np.float32), np.array([3.0, 0.0], np.float32))
    np.testing.assert_allclose(seconds, [0.05 + 0.04 + 0.012, 0.05 + 0.1], rtol=1e-3)

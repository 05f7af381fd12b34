"""Expected experts of several sequences."""

from __future__ import annotations

import numpy as np

from server.engine.admission.working_set import WorkingSets


def test_expected_experts_are_those_of_independent_choices() -> None:
    sets = WorkingSets({0: 4})
    chances = np.array([[[0.5, 0.5, 0, 0]], [[0.5, 0, 0.25, 0]]], dtype=np.float32)
    touched, missed = sets.expected(chances, np.array([1]))
    np.testing.assert_allclose(touched, [1.0, 0.75 + 0.5 + 0.25], rtol=1e-5)
    np.testing.assert_allclose(missed, [0.5, 0.75], rtol=1e-5)

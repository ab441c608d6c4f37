"""Inputs that the tests of figures share."""

import numpy as np
import pytest


@pytest.fixture
def proxies(rng):
    """Correlated proxies in three genera, and proxies nearly free of correlation."""
    genus = np.repeat(np.arange(3), 6)
    correlated = rng.normal(size=(3, 32))[genus] + 0.6 * rng.normal(size=(18, 32))
    return {"PA": correlated, "PA+SO": rng.normal(size=(18, 32))}

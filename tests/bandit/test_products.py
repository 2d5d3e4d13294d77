"""The product that skips what features do not use is the plain one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.products import product


@given(
    used=st.lists(st.booleans(), min_size=1, max_size=12),
    seed=st.integers(0, 10**6),
    kind=st.sampled_from([np.float32, np.float64]),
)
def test_it_is_the_plain_product_whatever_is_used(used, seed, kind):
    rng = np.random.default_rng(seed)
    x, M = (rng.normal(size=len(used)) * used).astype(kind), rng.normal(size=(len(used), 5)).astype(kind)
    found = product(x, M)
    assert found.dtype == kind
    np.testing.assert_allclose(found, np.einsum("d,dn->n", x, M), rtol=1e-3, atol=1e-5)


def test_rows_between_the_last_two_that_are_used_are_not_read():
    M = np.ones((5, 2))
    M[2:4] = np.nan
    assert product(np.array([1.0, 2.0, 0.0, 0.0, 3.0]), M) == pytest.approx([6.0, 6.0])

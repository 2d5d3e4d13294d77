"""Symmetric positive definite matrices by the triangular factors of their inverses."""

import numpy as np

from bandit.types import Matrix


def inverse_factor(B: Matrix) -> tuple[Matrix, float]:
    """(R, log |B|) of a symmetric positive definite matrix (d, d): R triangular to rounding, with B^-1 = R' R, so that R' z is a
    draw of the Gaussian with precision B where z is one of the standard normal. LinAlgError where B is not positive definite.
    """
    L = np.linalg.cholesky(B)
    R: Matrix = np.linalg.inv(L)
    return R, 2.0 * float(np.log(L.diagonal()).sum())

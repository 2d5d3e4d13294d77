"""Symmetric positive definite matrices: a precision, and its inverse, a covariance."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotri

from bandit.types import Matrix


def inverse_of(B: Matrix) -> tuple[Matrix, float]:
    """Inverse of a symmetric positive definite matrix (d, d), symmetric to the last bit, and log |B|. LinAlgError where B
    is not positive definite.
    """
    factor, failed = dpotrf(B, lower=1)
    if failed:
        raise np.linalg.LinAlgError(f"a precision that is not positive definite (row {failed})")
    lower, _ = dpotri(factor, lower=1)  # its lower triangle; above lies what was there before
    inverse: Matrix = np.where(_below_diagonal(len(B)), lower, lower.T)
    return inverse, 2.0 * float(np.log(factor.diagonal()).sum())


@cache
def _below_diagonal(d: int) -> NDArray[np.bool_]:
    return np.tri(d, dtype=np.bool_)

"""A product with features, which end in buckets of which one is used at most: most rows of the matrix are not read."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", np.float32, np.float64)


def product(x: NDArray[Number], M: NDArray[Number]) -> NDArray[Number]:
    """X' M (n,); x (d,), M (d, n). Reads the rows up to the last but one that x uses, and that of the last."""
    used = x.nonzero()[0]
    if len(used) < 2:
        return x @ M
    head, last = used[-2] + 1, used[-1]
    sums: NDArray[Number] = x[:head] @ M[:head]
    sums += x[last] * M[last]
    return sums

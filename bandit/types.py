"""The vocabulary: what a request demands, what the policy sees of it, and what was decided."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]  # (n,)
Matrix = NDArray[np.float64]  # (n, m)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a request demands of the arm that answers it.

    tokens_in: the prompt's length in tokens, estimated from its text.
    max_tokens_out: the caller's own limit on the answer in tokens, or None.
    tools: the request offers tools to call. images: it shows images. json_schema: it wants an answer of a given schema.
    """

    tokens_in: int
    max_tokens_out: int | None = None
    tools: bool = False
    images: bool = False
    json_schema: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """One request as the policy sees it.

    x: (d,) features, already rounded to float16 so that a logged record holds exactly what was decided on.
    """

    x: Vector
    needs: Needs

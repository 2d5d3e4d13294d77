"""Soft clusters of sentence vectors: the few coarse features that recorded outcomes reward.

c_1 ... c_k   centroids of k-means (Lloyd, k-means++ start) over the vectors of some prompts; no outcome is looked at
r_j(v)        proportional to exp(-|v - c_j|^2 / TEMPERATURE), sum 1
x             = [1, SCALE r_1 ... SCALE r_k]
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TEMPERATURE: Final = 0.1  # of squared distances between unit vectors
SCALE: Final = 3.0  # memberships are small; so scaled, a slope is shrunk about as much as any other feature's
ROUNDS_MAX: Final = 100


def soft_clusters(centroids: Floats, vectors: NDArray[np.floating]) -> Floats:
    """(n, 1 + k) features of vectors (n, d) by centroids (k, d)."""
    closeness = -_squared_distances(np.asarray(vectors, np.float64), centroids) / TEMPERATURE
    weights = np.exp(closeness - closeness.max(axis=1, keepdims=True))
    memberships = weights / weights.sum(axis=1, keepdims=True)
    return np.column_stack([np.ones(len(memberships)), SCALE * memberships])


def k_means(vectors: NDArray[np.floating], k: int, *, seed: int = 0) -> Floats:
    """(k, d) centroids; at least k vectors, else ValueError."""
    points = np.asarray(vectors, np.float64)
    if len(points) < k:
        raise ValueError(f"{k} clusters need at least {k} vectors, not {len(points)}")
    centroids = _spread_out(points, k, np.random.default_rng(seed))
    nearest = np.full(len(points), -1)
    for _ in range(ROUNDS_MAX):
        before, nearest = nearest, _squared_distances(points, centroids).argmin(axis=1)
        if np.array_equal(before, nearest):
            break
        for j in range(k):
            members = points[nearest == j]
            if len(members):
                centroids[j] = members.mean(axis=0)
    return centroids


def _spread_out(points: Floats, k: int, rng: np.random.Generator) -> Floats:
    """k-means++: each next one is drawn in proportion to its squared distance from those drawn before."""
    chosen = [points[rng.integers(len(points))]]
    for _ in range(1, k):
        distance = _squared_distances(points, np.array(chosen)).min(axis=1)
        total = distance.sum()
        weights = distance / total if total > 0 else None  # all points alike: any of them
        chosen.append(points[rng.choice(len(points), p=weights)])
    return np.array(chosen)


def _squared_distances(points: Floats, centroids: Floats) -> Floats:
    """(n, k)."""
    squares = (points**2).sum(axis=1)[:, None] - 2.0 * points @ centroids.T + (centroids**2).sum(axis=1)
    distances: Floats = np.maximum(squares, 0.0)
    return distances

"""Soft clusters: closed forms by hand, and k-means as scikit-learn does it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from simulations.clusters import SCALE, TEMPERATURE, k_means, soft_clusters


def blobs(seed, k=5, each=40, d=8, spread=0.05):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(k, d))
    return centres, (centres[:, None] + spread * rng.normal(size=(k, each, d))).reshape(-1, d)


def test_a_point_halfway_between_two_centroids_belongs_half_to_each():
    x = soft_clusters(np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[0.5, 7.0]]))
    np.testing.assert_allclose(x, [[1.0, SCALE / 2, SCALE / 2]])


def test_memberships_fall_with_the_squared_distance():
    x = soft_clusters(np.array([[0.0], [1.0]]), np.array([[0.0]]))[0]
    assert x[1] / x[2] == pytest.approx(np.exp(1.0 / TEMPERATURE))


@given(st.integers(0, 10_000), st.floats(0.01, 1e4))
def test_memberships_are_positive_and_sum_to_one_at_any_distance(seed, scale):
    rng = np.random.default_rng(seed)
    x = soft_clusters(scale * rng.normal(size=(4, 3)), scale * rng.normal(size=(6, 3)))
    assert (x >= 0).all()
    np.testing.assert_allclose(x[:, 0], 1.0)
    np.testing.assert_allclose(x[:, 1:].sum(axis=1), SCALE)


def test_well_separated_groups_are_found():
    centres, points = blobs(0)
    found = k_means(points, 5)
    distances = np.linalg.norm(centres[:, None] - found, axis=2)
    assert (distances.min(axis=1) < 0.05).all()


def test_the_scatter_within_clusters_is_about_what_scikit_learn_reaches():
    points = np.random.default_rng(3).normal(size=(400, 6))
    ours = min(scatter(points, k_means(points, 8, seed=seed)) for seed in range(5))
    assert ours <= 1.03 * KMeans(8, n_init=5, random_state=0).fit(points).inertia_


def test_centroids_are_the_means_of_what_is_nearest_to_them():
    _, points = blobs(1, spread=0.5)
    centroids = k_means(points, 5)
    nearest = np.linalg.norm(points[:, None] - centroids, axis=2).argmin(axis=1)
    for j in range(5):
        np.testing.assert_allclose(centroids[j], points[nearest == j].mean(axis=0))


def test_a_seed_makes_the_same_centroids_again():
    _, points = blobs(2, spread=1.0)
    np.testing.assert_array_equal(k_means(points, 7, seed=4), k_means(points, 7, seed=4))


def test_equal_points_are_no_trouble():
    np.testing.assert_allclose(k_means(np.ones((9, 2)), 3), 1.0)


def test_more_clusters_than_points_are_refused():
    with pytest.raises(ValueError, match="5 clusters need at least 5 vectors, not 4"):
        k_means(np.zeros((4, 2)), 5)


def scatter(points, centroids):
    return ((points[:, None] - centroids) ** 2).sum(axis=2).min(axis=1).sum()

"""Detectors kept as arrays against scikit-learn and against hand-made cases."""

import numpy as np
import pytest
from edge_ids.flow.classical import CBLOF, CLASSICAL, HBOS, PCA, IsolationForest
from sklearn import ensemble

RNG = np.random.default_rng(0)
X = RNG.random((700, 6), dtype=np.float32)


def test_isolation_forest_equals_scikit_learn():
    reference = ensemble.IsolationForest(n_estimators=100, random_state=3).fit(X)
    probe = np.concatenate([X[:100], 3 * RNG.random((100, 6), dtype=np.float32) - 1])
    np.testing.assert_allclose(IsolationForest.fit(X, 3).score(probe), -reference.score_samples(probe), rtol=1e-9)


def test_pca_is_the_mahalanobis_distance_where_all_axes_vary():
    covariance = np.cov(X.astype(float), rowvar=False)
    away = X[:50] - X.mean(0, dtype=float)
    expected = np.einsum("ei,ij,ej->e", away, np.linalg.inv(covariance), away) / 6
    np.testing.assert_allclose(PCA.fit(X, 0).score(X[:50]), expected, rtol=1e-6)


def test_hbos_by_hand():
    x = np.array([[0.0], [0.05], [0.95], [1.0]], np.float32)
    model = HBOS.fit(x, 0, bins=2)
    low = -np.log(2.1 / 4.3)
    np.testing.assert_allclose(model.score(np.array([[0.2], [0.9], [7.0]], np.float32)), [low, low, -np.log(0.1 / 4.3)])


def test_cblof_is_the_distance_to_a_large_cluster():
    x = np.concatenate([np.tile([[0.0, 0.0]], (95, 1)), np.tile([[9.0, 0.0]], (5, 1))]).astype(np.float32)
    np.testing.assert_allclose(CBLOF.fit(x, 0).score(np.array([[3.0, 4.0], [9.0, 0.0]], np.float32)), [5, 9], atol=1e-5)


@pytest.mark.parametrize("kind", list(CLASSICAL))
def test_an_outlier_scores_highest_and_arrays_are_the_whole_state(kind):
    model = CLASSICAL[kind].fit(X, 0)
    probe = np.concatenate([X[:200], np.full((1, 6), 2.5, np.float32)])
    scores = model.score(probe)
    assert scores.argmax() == 200
    assert (CLASSICAL[kind](model.arrays).score(probe) == scores).all()
    assert CLASSICAL[kind].fit(X[:1], 0).score(X[:3]).shape == (3,)

"""Transformers: agreement with the chain, scikit-learn's own checks, and no learning where none is meant."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from edge_shared.errors import InputError
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from tinyeeg import features, filters, presets

WINDOWS = np.random.default_rng(0).normal(size=(12, 4, 1024)).cumsum(axis=2)


@parametrize_with_checks([features.Baseline(), features.Baseline("robust")])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_welch_bands_equal_the_settled_chain():
    chain = presets.compact(smooth_s=4.0)
    stream = np.random.default_rng(1).normal(size=(4, 256 * 30)).cumsum(axis=1)
    filtered, _ = filters.apply(chain.sections, stream - stream[:, :1])
    windows = np.stack([filtered[:, start : start + 1024] for start in range(0, filtered.shape[1] - 1023, 128)])
    found = features.WelchBands(256.0, presets.MUSE_CHANNELS).fit_transform(windows)
    np.testing.assert_allclose(found, chain.features(stream)[chain.smoothing.frames - 1 :], atol=1e-9)


def test_names_are_unique_and_pandas_like_output_works():
    transformer = features.STFTdB(128.0, ("O1", "O2")).fit(np.zeros((1, 2, 1920)))
    names = transformer.get_feature_names_out()
    assert names[20] == "O1_10.5Hz_dB"
    assert len(set(names)) == len(names) == 72


def test_pipeline_is_cloned_pickled_and_searched():
    pipeline = make_pipeline(
        features.ChannelSubset(("a", "b", "c", "d"), ("d", "a")), features.CausalFilter(256.0, notch=50.0), features.WelchBands(256.0),
        features.Baseline(), LogisticRegression(),
    )  # fmt: skip
    y = np.arange(12) % 2
    search = GridSearchCV(clone(pipeline), {"baseline__method": ["mean", "robust"]}, cv=3).fit(WINDOWS, y)
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict(WINDOWS), search.predict(WINDOWS))


def test_baseline_learns_from_fit_alone():
    X = np.random.default_rng(2).normal(size=(50, 3)) * 4 + 7
    baseline = features.Baseline(clip=2.0).fit(X)
    before = baseline.center_.copy(), baseline.scale_.copy()
    scaled = baseline.transform(X + 1000)
    np.testing.assert_array_equal(np.stack(before), np.stack([baseline.center_, baseline.scale_]))
    assert (scaled == 2.0).all()
    np.testing.assert_allclose(features.Baseline(clip=100).fit_transform(X).std(axis=0), 1)


def test_robust_baseline_withstands_artefacts():
    X = np.random.default_rng(3).normal(size=(1001, 1))
    X[:100] = 1e4
    robust = features.Baseline("robust").fit(X)
    assert abs(robust.center_[0]) < 0.2
    assert robust.scale_[0] == pytest.approx(1, abs=0.25)


def test_wrong_shapes_are_named():
    with pytest.raises(InputError, match="n_windows, n_channels, n_times"):
        features.WelchBands().fit(np.zeros((3, 4)))
    with pytest.raises(InputError, match="shorter than one segment"):
        features.WelchBands().fit(WINDOWS).transform(WINDOWS[..., :100])
    with pytest.raises(InputError, match="cannot keep"):
        features.ChannelSubset(("a", "b", "c", "d"), ("x",)).fit(WINDOWS).transform(WINDOWS)


def test_smoothing_of_rows_equals_a_loop():
    X = np.random.default_rng(4).normal(size=(40, 3)) ** 2
    boxcar = [X[max(0, i - 4) : i + 1].mean(axis=0) for i in range(40)]
    np.testing.assert_allclose(features.Smooth("boxcar", 5).fit_transform(X), boxcar)
    mean, rows = X[0], []
    for row in X:
        mean = mean + (row - mean) / 5
        rows.append(mean)
    np.testing.assert_allclose(features.Smooth("exponential", 5).fit_transform(X), rows)

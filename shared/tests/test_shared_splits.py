"""No group, moment or duplicate is ever on two sides."""

import itertools

import numpy as np
import pytest
from edge_shared.data import splits
from edge_shared.errors import InputError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

FRACTIONS = st.sampled_from([(0.7, 0.1, 0.2), (0.5, 0.25, 0.25), (0.8, 0.2, 0.0), (0.8, 0.0, 0.2), (1.0, 0.0, 0.0)])


def disjoint_and_ascending(split):
    for one, other in itertools.combinations(split.parts, 2):
        assert not set(one.tolist()) & set(other.tolist())
    for rows in split.parts:
        assert (np.diff(rows) > 0).all()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=200), FRACTIONS, st.integers(0, 5))
def test_groups_never_straddle(groups, fractions, seed):
    wanted = sum(share > 0 for share in fractions)
    if len(set(groups)) < wanted:
        with pytest.raises(InputError, match="cannot fill"):
            splits.by_group(groups, fractions, seed)
        return
    split = splits.by_group(groups, fractions, seed)
    disjoint_and_ascending(split)
    assert sum(map(len, split.parts)) == len(groups)
    names = [set(np.asarray(groups)[rows].tolist()) for rows in split.parts]
    assert not any(one & other for one, other in itertools.combinations(names, 2))
    assert [bool(len(rows)) for rows in split.parts] == [share > 0 for share in fractions]


def test_group_split_is_near_its_shares_and_fixed_by_its_seed():
    groups = np.repeat(np.arange(50), 10)
    split = splits.by_group(groups, (0.7, 0.1, 0.2), seed=3)
    assert [len(rows) for rows in split.parts] == [350, 50, 100]
    again = splits.by_group(groups, (0.7, 0.1, 0.2), seed=3)
    other = splits.by_group(groups, (0.7, 0.1, 0.2), seed=4)
    assert np.array_equal(split.test, again.test)
    assert not np.array_equal(split.test, other.test)


@given(
    arrays(np.float64, st.integers(3, 120), elements=st.floats(-100, 100).map(lambda t: round(t, 1))),
    FRACTIONS,
    st.sampled_from([0.0, 0.5, 5.0]),
)
def test_time_flows_from_train_to_test_with_the_embargo_between(times, fractions, embargo):
    try:
        split = splits.by_time(times, fractions, embargo)
    except InputError as error:
        if "empty" not in str(error):
            raise
        return
    disjoint_and_ascending(split)
    for one, other in itertools.combinations([times[rows] for rows in split.parts if len(rows)], 2):
        assert one.max() < other.min()
        assert other.min() - one.max() >= embargo
    if embargo == 0 and len(set(times)) == len(times):
        assert sum(map(len, split.parts)) == len(times)


def test_time_split_has_its_shares_without_an_embargo_and_drops_from_the_earlier_side_with_one():
    times = np.arange(100.0)
    assert [len(rows) for rows in splits.by_time(times).parts] == [70, 10, 20]
    split = splits.by_time(times, embargo=3.0)
    assert [len(rows) for rows in split.parts] == [68, 8, 20]
    assert (split.train[-1], split.val[0], split.val[-1], split.test[0]) == (67, 70, 77, 80)


@pytest.mark.parametrize("times", [[0.0, np.nan, 1.0], [np.inf, 0.0, 1.0], [], [[1.0]]])
def test_times_that_are_no_times_are_refused(times):
    with pytest.raises(InputError, match="times"):
        splits.by_time(times)


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 3)), min_size=1, max_size=150), FRACTIONS, st.integers(0, 3), st.randoms())
def test_duplicates_never_straddle_and_row_order_does_not_matter(rows, fractions, seed, random):
    keys = [b"image %d" % content for content, _ in rows]
    labels = [label for _, label in rows]
    split = splits.by_content(keys, labels, fractions, seed)
    disjoint_and_ascending(split)
    assert sum(map(len, split.parts)) == len(rows)
    contents = [{keys[row] for row in part} for part in split.parts]
    assert not any(one & other for one, other in itertools.combinations(contents, 2))
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = splits.by_content([keys[i] for i in order], [labels[i] for i in order], fractions, seed)
    assert contents == [{keys[order[row]] for row in part} for part in shuffled.parts]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=300), FRACTIONS, st.integers(0, 3))
def test_every_class_has_its_share_to_less_than_one_row(labels, fractions, seed):
    split = splits.stratified(labels, fractions, seed)
    disjoint_and_ascending(split)
    for label in set(labels):
        total = labels.count(label)
        for rows, share in zip(split.parts, fractions, strict=True):
            assert abs(sum(labels[row] == label for row in rows) - share * total) < 1


@given(st.lists(st.integers(0, 9), min_size=2, max_size=100), st.integers(2, 5), st.integers(0, 3))
def test_group_folds_cover_each_row_once_and_split_no_group(groups, folds, seed):
    if len(set(groups)) < folds:
        with pytest.raises(InputError, match="folds"):
            list(splits.k_fold_groups(groups, folds, seed))
        return
    tested = []
    for train, test in splits.k_fold_groups(groups, folds, seed):
        assert len(test)
        assert sorted([*train, *test]) == list(range(len(groups)))
        assert not {groups[row] for row in train} & {groups[row] for row in test}
        tested += test.tolist()
    assert sorted(tested) == list(range(len(groups)))


def test_leaving_one_group_out_agrees_with_scikit_learn():
    from sklearn.model_selection import LeaveOneGroupOut

    groups = np.asarray(["b", "a", "c", "a", "b"])
    ours = [(train.tolist(), test.tolist()) for _, train, test in splits.leave_one_group_out(groups)]
    theirs = [(train.tolist(), test.tolist()) for train, test in LeaveOneGroupOut().split(groups, groups=groups)]
    assert ours == theirs
    with pytest.raises(InputError, match="at least two"):
        list(splits.leave_one_group_out(["a", "a"]))


@given(st.integers(2, 200), st.integers(2, 10), st.integers(0, 8))
def test_contiguous_folds_keep_their_embargo(rows, folds, embargo):
    if folds > rows:
        with pytest.raises(InputError, match="folds"):
            list(splits.contiguous_folds(rows, folds, embargo))
        return
    tested = []
    try:
        for train, test in splits.contiguous_folds(rows, folds, embargo):
            assert (np.diff(test) == 1).all()
            assert np.abs(train[:, None] - test[None, :]).min() > embargo
            inside = np.arange(max(test[0] - embargo, 0), min(test[-1] + embargo + 1, rows))
            assert len(train) + len(inside) == rows
            tested += test.tolist()
    except InputError as error:
        if "embargo" not in str(error):
            raise
        return
    assert tested == list(range(rows))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.integers(1, 250), st.integers(0, 3))
def test_a_subset_keeps_the_class_shares(labels, limit, seed):
    rows = splits.subset(labels, limit, seed)
    assert len(rows) == min(limit, len(labels))
    assert (np.diff(rows) > 0).all()
    for label in set(labels):
        expected = labels.count(label) * len(rows) / len(labels)
        assert abs(sum(labels[row] == label for row in rows) - expected) <= 5


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.7, 0.2, 0.2), (-0.1, 0.1, 1.0), (0.0, 0.5, 0.5), (np.nan, 0.5, 0.5)])
def test_shares_that_are_no_shares_are_refused(fractions):
    with pytest.raises(InputError, match="fractions"):
        splits.by_group([1, 2, 3], fractions)

"""Reading, scaling, splitting, cutting, measuring."""

import gzip
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from edge_ids.flow import sources
from edge_ids.flow.inspect import convert, inspect
from edge_ids.flow.metrics import average_precision, measure
from edge_ids.flow.netflow import read_netflow
from edge_ids.flow.scaling import Scaler
from edge_ids.flow.schema import NF_V2, NF_V3
from edge_ids.flow.splits import PROTOCOLS, benign, split
from edge_ids.flow.synthetic import hard_cases
from edge_ids.flow.table import concatenate
from edge_ids.flow.thresholds import calibrate, mad, quantile, supervised_f1
from edge_shared.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

DATA = Path(os.environ.get("EDGEWISE_DATA", Path(__file__).parents[4] / "shared" / "data")) / "ids"
MINI = DATA / "netflow_nf_botiot_v2" / "botiot_mini.csv.gz"
real = pytest.mark.skipif(not MINI.is_file(), reason="needs shared/data")


def write(path, rows, columns, drop=()):
    names = [name for name in columns if name not in drop]
    text = ",".join(names) + "\n" + "".join(",".join(str(row.get(name, 0)) for name in names) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


V2 = ["IPV4_SRC_ADDR", "L4_SRC_PORT", "IPV4_DST_ADDR", *NF_V2[1:], "Label", "Attack"]
V3 = ["FLOW_START_MILLISECONDS", "FLOW_END_MILLISECONDS", *V2[:-2], *(f"{name}  " for name in NF_V3[41:]), "Label", "Attack"]
ROWS = [
    {
        "IPV4_SRC_ADDR": "10.0.0.1",
        "IPV4_DST_ADDR": "10.0.0.2",
        "IN_BYTES": 7,
        "Label": 0,
        "Attack": "Benign",
        "FLOW_START_MILLISECONDS": 1500,
    },
    {
        "IPV4_SRC_ADDR": "10.0.0.2",
        "IPV4_DST_ADDR": "10.0.0.3",
        "SRC_TO_DST_SECOND_BYTES": "8.9e211",
        "OUT_BYTES": "inf",
        "Label": 1,
        "Attack": "DoS",
    },
]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_v2_and_its_concatenated_digits(tmp_path, name):
    table = next(read_netflow(write(tmp_path / name, ROWS, V2)))
    assert (table.schema.name, table.extractor, len(table.schema)) == ("nf-v2", "nprobe", 41)
    assert table.hosts[table.src].tolist() == ["10.0.0.1", "10.0.0.2"]
    assert table.hosts[table.dst].tolist() == ["10.0.0.2", "10.0.0.3"]
    assert table.features[0, NF_V2.index("IN_BYTES")] == 7
    assert table.features[1, NF_V2.index("SRC_TO_DST_SECOND_BYTES")] == 8.9e211
    assert table.label.tolist() == [0, 1]
    assert table.attack.tolist() == ["Benign", "DoS"]
    assert table.start is None


def test_v3_with_blanks_in_its_header_and_times(tmp_path):
    table = next(read_netflow(write(tmp_path / "b.csv", ROWS, V3)))
    assert (table.schema.name, len(table.schema)) == ("nf-v3", 49)
    assert table.start[0] == 1.5


def test_batches_and_parquet_give_the_same_flows(tmp_path):
    rows = [ROWS[0] | {"IPV4_SRC_ADDR": f"10.0.{i % 3}.9", "IN_BYTES": i} for i in range(25)]
    path = write(tmp_path / "c.csv", rows, V2)
    whole = next(read_netflow(path))
    parts = list(read_netflow(path, batch=4))
    assert max(len(part) for part in parts) <= 4
    convert(str(path), tmp_path / "c.parquet")
    for other in (concatenate(parts), concatenate(list(read_netflow(tmp_path / "c.parquet")))):
        assert (other.features == whole.features).all()
        assert (other.hosts[other.src] == whole.hosts[whole.src]).all()
        assert (other.label == whole.label).all()


def test_unreadable_tables_say_what_and_where(tmp_path):
    with pytest.raises(InputError, match="lacks 2 columns: IN_BYTES, OUT_PKTS"):
        list(read_netflow(write(tmp_path / "a.csv", ROWS, V2, drop=("IN_BYTES", "OUT_PKTS"))))
    with pytest.raises(InputError, match=r"b.csv:3: column IN_PKTS holds 'many', which is no number"):
        list(read_netflow(write(tmp_path / "b.csv", [ROWS[0], ROWS[1] | {"IN_PKTS": "many"}], V2)))
    with pytest.raises(InputError, match="Label holds 2"):
        list(read_netflow(write(tmp_path / "c.csv", [ROWS[0] | {"Label": 2}], V2)))
    (tmp_path / "d.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "e.csv.gz").write_bytes(b"\x1f\x8b broken")
    (tmp_path / "f.csv").write_bytes(b"")
    for name in ("d.parquet", "e.csv.gz", "f.csv", "absent.csv"):
        with pytest.raises(InputError, match=name):
            list(sources.read(tmp_path / name))


@real
def test_the_real_set():
    report = inspect(str(MINI))
    assert (report.schema, report.flows, report.benign, report.attack, report.hosts) == ("nf-v2", 2818, 1285, 1533, 37)


@pytest.mark.parametrize("kind", ["minmax", "log1p"])
def test_scaler(kind):
    x = np.array([[0.0, 5, 1], [np.inf, 5, 8.9e211], [4, 5, np.nan], [-2, 5, 3]])
    scaler = Scaler.fit(x, kind)
    scaled = scaler.transform(x)
    assert scaled.dtype == np.float32
    assert np.isfinite(scaled).all()
    assert (scaled >= 0).all()
    assert (scaled <= 1).all()
    assert (scaled[:, 1] == 0).all()
    assert scaled[1, 0] == scaled[0, 0], "inf counts as 0"
    far = scaler.transform(np.array([[1e9, 5, -1e300], [-1e9, 9, 0]]))
    assert far.max() <= 10
    assert far.min() >= -10
    again = Scaler.from_json(json.loads(json.dumps(scaler.to_json())))
    assert (again.transform(x) == scaled).all()


@pytest.fixture(scope="module")
def table():
    return hard_cases(4000, 30)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_splits_cover_all_flows_once(table, protocol):
    parts = split(table, protocol, 1).parts
    assert (np.sort(np.concatenate(parts)) == np.arange(len(table))).all()
    shares = np.array([len(part) for part in parts]) / len(table)
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.001 if protocol != "unseen-host-pair" else 0.05)
    assert (table.label[benign(table, parts[0])] == 0).all()
    again = split(table, protocol, 1).parts
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))


def test_random_is_stratified_by_attack_class(table):
    for part, count in zip(split(table, "random").parts, (24, 3, 3), strict=True):
        assert (table.attack[part] == "new-host").sum() == count


def test_chronological_never_looks_ahead(table):
    train, val, test = split(table, "chronological").parts
    assert table.start[train].max() <= table.start[val].min()
    assert table.start[val].max() <= table.start[test].min()
    shuffled = table.rows(np.random.default_rng(0).permutation(len(table)))
    assert shuffled.start[split(shuffled, "chronological").train].max() <= table.start[val].min()


def test_no_pair_of_hosts_lies_on_two_sides(table):
    seen = [
        {frozenset(pair) for pair in zip(table.src[p].tolist(), table.dst[p].tolist(), strict=True)}
        for p in split(table, "unseen-host-pair").parts
    ]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    for part in split(table, "unseen-host-pair").parts:
        assert 0 < table.label[part].sum() < len(part)


def test_splits_refuse_what_they_cannot_split(table):
    with pytest.raises(InputError, match="too few"):
        split(table.rows(slice(0, 9)), "random")
    with pytest.raises(InputError, match="--split time"):
        split(table, "time")
    with pytest.raises(InputError, match="no benign flow"):
        benign(table, np.flatnonzero(table.label == 1))


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=40))
@settings(max_examples=100, deadline=None)
def test_supervised_threshold_is_optimal(items):
    scores, label = np.array([score for score, _ in items], float), np.array([attack for _, attack in items], int)
    if not 0 < label.sum() < len(label):
        return
    best = max(f1_score(label, scores > cut, average="macro", zero_division=0) for cut in (-1, *np.unique(scores)))
    found = supervised_f1(scores, label)
    assert f1_score(label, scores > found.value, average="macro", zero_division=0) == pytest.approx(best)
    grid = supervised_f1(scores, label, candidates=500)
    assert f1_score(label, scores > grid.value, average="macro", zero_division=0) <= best + 1e-12


def test_slack_takes_the_cut_in_the_widest_gap():
    # Two attacks score 1.0 among nine benign flows; the best cut, 1.05, lies a hair below the other attacks.
    scores = np.array([*np.linspace(0, 0.5, 9), 1.0, 1.0, 1.1, *np.full(88, 1.1)])
    label = np.array([0] * 9 + [1] * 91)
    assert supervised_f1(scores, label, slack=0.02).value == pytest.approx(0.75)
    label[9:11] = 0
    best = supervised_f1(scores, label)
    assert best.value == pytest.approx(1.05)
    # Two benign flows more or less are worth 0.05 of macro F1 here: not given up for the gap.
    assert supervised_f1(scores, label, slack=0.02).value == best.value
    assert supervised_f1(scores, label, slack=0.06).value == pytest.approx(0.75)


def test_mad_by_hand():
    # Median 3, absolute deviations 2 1 0 1 97, their median 1.
    assert mad(np.array([1.0, 2, 3, 4, 100]), factor=10).value == pytest.approx(3 + 14.826)


def test_quantile_keeps_its_promise_on_fresh_flows():
    rng = np.random.default_rng(0)
    rates = np.array([(rng.random(20_000) > quantile(rng.random(1000), 0.02, 0.9).value).mean() for _ in range(200)])
    # It may be exceeded in one of ten calibrations (binomial, 200 draws: 3 sigma is 6.4 %), and must not be timid either.
    assert (rates > 0.02).mean() < 0.1 + 0.064 + 0.03
    assert rates.mean() > 0.01


def test_quantile_needs_enough_flows():
    assert quantile(np.arange(299.0), 0.01, 0.95).value == 298
    with pytest.raises(InputError, match="needs 299 benign calibration flows, there are 298"):
        quantile(np.arange(298.0), 0.01, 0.95)
    with pytest.raises(InputError, match="needs labels"):
        calibrate("f1", np.arange(5.0), None)


def test_a_higher_threshold_never_adds_alarms():
    scores = np.random.default_rng(0).random(500)
    counts = [measure(scores, (scores > 0.7).astype(int), cut).recall for cut in np.linspace(0, 1, 11)]
    assert counts == sorted(counts, reverse=True)


def test_metrics_by_hand():
    label, scores = np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.2, 0.8, 0.1, 0.3])
    found = measure(scores, label, 0.5)
    # One of two attacks found, one of three benign flows flagged.
    assert (found.precision, found.recall) == (0.5, 0.5)
    assert found.false_alarm_rate == pytest.approx(1 / 3)
    assert found.macro_f1 == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found.pr_auc == pytest.approx((1 + 2 / 4) / 2)
    assert average_precision(scores, np.ones(5, int)) is None
    assert measure(scores, None, 0.5).macro_f1 is None


def test_tables_of_two_extractors_do_not_mix(table):
    with pytest.raises(InputError, match="do not mix"):
        concatenate([table, replace(table, extractor="other")])


def test_polars_reads_what_we_write(tmp_path, table):
    path = tmp_path / "t.parquet"
    part = table.rows(slice(0, 50))
    names = {name: part.features[:, index] for index, name in enumerate(NF_V2)}
    pl.DataFrame({"IPV4_SRC_ADDR": part.hosts[part.src], "IPV4_DST_ADDR": part.hosts[part.dst], **names}).write_parquet(path)
    again = next(read_netflow(path))
    assert again.label is None
    assert (again.features == part.features).all()


def cut_at(table, places):
    return [table.rows(slice(start, stop)) for start, stop in zip([0, *places], [*places, len(table)], strict=True)]


@given(st.integers(1, 90), st.lists(st.integers(0, 60), max_size=4).map(sorted), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_a_sample_is_in_order_and_does_not_depend_on_the_batches(flows, places, seed):
    from edge_ids.flow.sample import sample
    from edge_ids.flow.table import concatenate

    table = hard_cases(60, 3)
    whole, parts = (concatenate(sample(tables, flows, seed)) for tables in ([table], cut_at(table, places)))
    assert len(whole) == min(flows, len(table))
    np.testing.assert_array_equal(whole.features, parts.features)
    names = [set(zip(part.hosts[part.src], part.hosts[part.dst], strict=True)) for part in (whole, parts)]
    assert names[0] == names[1]
    assert set(parts.hosts) == {host for pair in names[1] for host in pair}
    rows = [np.flatnonzero((table.features == row).all(1)) for row in whole.features]
    assert all(len(found) for found in rows)
    if all(len(found) == 1 for found in rows):
        assert (np.diff([found[0] for found in rows]) > 0).all()


def test_every_flow_has_the_same_chance_to_be_sampled():
    from edge_ids.flow.sample import sample

    table = hard_cases(60, 3)
    table = replace(table, start=np.arange(float(len(table))))
    counts = np.zeros(len(table))
    for seed in range(400):
        for part in sample(cut_at(table, [5, 30, 31]), 15, seed):
            counts[part.start.astype(int)] += 1
    share = 15 / len(table)
    assert counts.sum() == 400 * 15
    # Five standard deviations of a binomial.
    assert (np.abs(counts - 400 * share) < 5 * np.sqrt(400 * share * (1 - share))).all()


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("block", [1, 100, 700, 10_000])
def test_blocks_of_a_csv_file_lose_no_line(tmp_path, monkeypatch, ending, zipped, block):
    from edge_ids.flow import netflow

    rows = [{"IPV4_SRC_ADDR": f"10.0.0.{i}", "IPV4_DST_ADDR": "10.0.1.1", "IN_BYTES": i, "Attack": "Benign"} for i in range(20)]
    path = write(tmp_path / "a.csv", rows, V2)
    text = path.read_text().replace("\n", ending).removesuffix(ending).encode()
    path.write_bytes(gzip.compress(text) if zipped else text)
    monkeypatch.setattr(netflow, "_BLOCK", block)
    table = concatenate(list(read_netflow(path)))
    assert table.features[:, NF_V2.index("IN_BYTES")].tolist() == list(range(20))
    assert table.hosts[table.src].tolist() == [row["IPV4_SRC_ADDR"] for row in rows]


def test_a_zipped_file_that_ends_early_is_an_error(tmp_path):
    rows = [{"IPV4_SRC_ADDR": f"10.0.{i // 250}.{i % 250}", "IPV4_DST_ADDR": "10.0.1.1"} for i in range(3000)]
    path = write(tmp_path / "a.csv.gz", rows, V2)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError, match=r"a\.csv\.gz: cannot be read"):
        list(read_netflow(path))

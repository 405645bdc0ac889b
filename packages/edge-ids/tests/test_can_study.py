"""Labels of ROAD, the injectors, the generator, metrics by hand, and the models of the study."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from edge_ids.can.compare import run, split
from edge_ids.can.detector import Detection, Scores
from edge_ids.can.frames import EXTENDED, Frames, concat, make_frames
from edge_ids.can.generate import arbitrate, generate, like
from edge_ids.can.inject import KINDS, Attack, inject
from edge_ids.can.metrics import Evaluation, average_precision, binary_metrics
from edge_ids.can.models.classical import lccde_decision, smote
from edge_ids.can.models.features import block_starts, id_bits, id_windows
from edge_ids.can.road import Labeller, Rule, attack_class, matches, read_metadata
from edge_ids.can.writers import write_frames
from edge_ids.cli import app
from edge_shared.cli import run as command_line
from edge_shared.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st


def frames_of(rows: list[tuple[float, int, str]], **names: object) -> Frames:
    return make_frames([round(t * 1e6) for t, _, _ in rows], [i for _, i, _ in rows], [bytes.fromhex(d) for _, _, d in rows], **names)


# --- ROAD


def test_labels_at_the_boundaries_by_id_and_nibble() -> None:
    rows = [
        (10.0, 0xD0, "AABB"),
        (11.0, 0xD0, "1CBB"),
        (12.0, 0xD0, "2CBB"),
        (12.0, 0xD1, "2CBB"),
        (13.0, 0xD0, "2DBB"),
        (14.0, 0xD0, "FCBB"),
        (14.000001, 0xD0, "FCBB"),
    ]
    labelled = Labeller(Rule("light", 0xD0, "XCXX", (1.0, 4.0)))(frames_of(rows))
    assert labelled.label.tolist() == [0, 1, 1, 0, 0, 1, 0]
    any_id = Labeller(Rule("fuzzing", None, "", (2.0, 2.0)))(frames_of(rows))
    assert any_id.label.tolist() == [0, 0, 1, 1, 0, 0, 0]
    assert Labeller(Rule("ambient", None, "", None))(frames_of(rows)).label.tolist() == [0] * 7


def test_short_payload_does_not_match_a_longer_mask() -> None:
    frames = frames_of([(0, 1, "FF"), (0, 1, "FFFF")])
    assert matches(frames.data, frames.length, "FFFF").tolist() == [False, True]
    assert matches(frames.data, frames.length, "XXXX").tolist() == [True, True]


def test_metadata_by_name_not_by_order(tmp_path: Path) -> None:
    entry = {"injection_id": "0xd0", "injection_data_str": "XXXXXXXXXXFFXXXX", "injection_interval": [42.009204, 66.449011]}
    names = {
        "max_speedometer_attack_1_masquerade": entry,
        "fuzzing_attack_2": entry | {"injection_id": "XXX"},
        "ambient_dyno_reverse": {"injection_interval": None},
    }
    for order in (list(names), list(names)[::-1]):
        (tmp_path / "m.json").write_text(json.dumps({name: names[name] for name in order}))
        rules = read_metadata(tmp_path / "m.json")
        assert rules["max_speedometer_attack_1_masquerade"] == Rule(
            "max_speedometer_masquerade", 0xD0, "XXXXXXXXXXFFXXXX", (42.009204, 66.449011)
        )
        assert rules["fuzzing_attack_2"].id is None
        assert rules["ambient_dyno_reverse"].interval is None
    assert attack_class("max_engine_coolant_temp_attack") == "max_engine_coolant_temp"
    for bad in (
        {"injection_interval": [3, 1]},
        {"injection_interval": [1, 2], "injection_id": "zz"},
        {"injection_interval": [1, 2], "injection_data_str": "GG"},
        7,
    ):
        (tmp_path / "m.json").write_text(json.dumps({"x": bad}))
        with pytest.raises(InputError, match="capture 'x'"):
            read_metadata(tmp_path / "m.json")


# --- generator and injectors


@pytest.fixture(scope="module")
def bus() -> Frames:
    return generate(40, seed=2)[0]


def test_generator_is_seeded_marked_and_periodic(bus: Frames) -> None:
    again = generate(40, seed=2)[0]
    np.testing.assert_array_equal(bus.data, again.data)
    np.testing.assert_array_equal(bus.time_us, again.time_us)
    assert bus.synthetic
    assert (np.diff(bus.time_us) > 0).all()
    for ident, period, jitter in ((0x280, 10_000, 90), (0x110, 10_000, 250), (0x410, 100_000, 190)):
        steps = np.diff(bus.time_us[bus.id == ident])
        assert abs(np.median(steps) - period) < 0.01 * period
        assert steps.std() < 3 * jitter + 250  # two jitters and the wait for the bus
    rows = bus.id == 0x120
    assert (np.bitwise_xor.reduce(bus.data[rows], axis=1) == 0).all()  # the checksum byte
    assert (np.diff(bus.data[rows, 6]) == 1).all()  # the counter wraps in uint8


def test_traffic_like_a_trace_has_its_ids_and_periods(bus: Frames) -> None:
    copy = generate(40, like(bus), seed=9)[0]
    assert set(copy.id.tolist()) == set(bus.id.tolist())
    for ident in (0x110, 0x1A0, 0x410):
        assert np.median(np.diff(copy.time_us[copy.id == ident])) == pytest.approx(
            np.median(np.diff(bus.time_us[bus.id == ident])), rel=0.01
        )


@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 0x7FF), st.booleans(), st.integers(1, 270)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_arbitration_against_a_plain_simulation(rows: list[tuple[int, int, bool, int]]) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    release, duration = np.array([r[0] for r in rows]), np.array([r[3] for r in rows])
    key = np.array([(r[1] << 18 | EXTENDED << 29) if r[2] else r[1] for r in rows])
    done, order = arbitrate(release, key, duration)
    bits = [
        format(k & 0x1FFFFFFF, "029b")[:11] + "1" + format(k & 0x1FFFFFFF, "029b")[11:] if k >> 29 else format(k, "011b") + "0"
        for k in key.tolist()
    ]
    now, left, expected = 0, list(range(len(rows))), []
    while left:
        ready = [i for i in left if release[i] <= now]
        if not ready:
            now = int(min(release[i] for i in left))
            continue
        winner = min(ready, key=lambda i: (bits[i], i))  # dominant is 0, on the wire bit by bit
        now += int(duration[winner])
        expected.append((now, winner))
        left.remove(winner)
    assert list(zip(done.tolist(), order.tolist(), strict=True)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_injector_counts_equal_labels_and_labeller(bus: Frames, kind: str) -> None:
    attack = Attack(kind, 12.0, 20.0, None if kind in ("fuzzing", "dos") else 0x280)
    if kind in ("fabrication", "masquerade"):
        attack = Attack(kind, 12.0, 20.0, 0x280, "XXXXXXXXXXXXXXEE")  # byte 7 is never EE otherwise
    injection = inject(bus, attack, seed=3)
    positives = int(injection.frames.attack.sum())
    assert positives == injection.added + injection.changed
    assert len(injection.frames) == len(bus) + injection.added - injection.removed
    assert (np.diff(injection.frames.time_us) >= 0).all()
    assert injection.frames.synthetic
    assert injection.metadata()["synthetic"] is True
    if kind in ("fuzzing", "fabrication", "masquerade", "correlated", "dos"):
        meta = injection.metadata()
        ident = None if meta["injection_id"] == "XXX" else int(meta["injection_id"], 16)
        rule = Rule(kind, ident, meta["injection_data_str"], injection.interval)
        found = Labeller(rule)(injection.frames)
        np.testing.assert_array_equal(found.attack, injection.frames.attack)


def test_masquerade_is_fabrication_without_the_legitimate_frames(bus: Frames) -> None:
    mask = "XXXXFFXXXXXXXXXX"
    forged = inject(bus, Attack("fabrication", 12, 20, 0x280, mask), seed=3)
    silent = inject(bus, Attack("masquerade", 12, 20, 0x280, mask), seed=3)
    assert forged.added == silent.changed
    assert len(forged.frames) - len(silent.frames) == forged.added
    rows = bus.id == 0x280
    np.testing.assert_array_equal(silent.frames.time_us[silent.frames.id == 0x280], bus.time_us[rows])


def test_dos_delays_others_and_bad_attacks_are_refused(bus: Frames) -> None:
    flooded = inject(bus, Attack("dos", 12, 20), seed=1).frames
    low = flooded.id == 0x531
    during = np.diff(flooded.time_us[low])
    assert during.std() > np.diff(bus.time_us[bus.id == 0x531]).std()
    for attack, message in [
        (Attack("nope", 1, 2), "unknown"),
        (Attack("dos", 50, 60), "not inside"),
        (Attack("fabrication", 1, 2, 0x7FF), "no frame of ID 0x7FF"),
        (Attack("masquerade", 1, 9, 0x280, "ZZ"), "mask"),
        (Attack("masquerade-offset", 1, 9, 0x301), "no byte that changes"),
    ]:
        with pytest.raises(InputError, match=message):
            inject(bus, attack)


# --- metrics


def test_metrics_on_a_timeline_by_hand() -> None:
    times = np.arange(0, 100) * 100_000  # 9.9 s
    label = np.zeros(100, int)
    label[20:30] = 1  # 2.0 to 2.9 s
    label[70:75] = 1  # 7.0 to 7.4 s, another event
    ratio = np.zeros(100, np.float32)
    ratio[[22, 25]] = 1.5
    alerts = [Detection(22, 2_200_000, 1, "timing", 1, 1), Detection(60, 6_000_000, 1, "counter", 1, 1)]
    raised = np.zeros(100, np.int64)
    raised[22] = 1
    evaluation = Evaluation()
    frames = make_frames(times, np.ones(100), np.zeros((100, 8), np.uint8), label=label)
    for part in (slice(0, 21), slice(21, 24), slice(24, 100)):  # an event may span chunks
        start, stop, _ = part.indices(100)
        inside = [alert for alert in alerts if start <= alert.frame < stop]
        evaluation.add(frames.take(part), Scores(ratio[part], raised[part], inside))
    result = evaluation.result()
    assert (result["events"], result["event_recall"]) == (2, 0.5)
    assert result["median_seconds_to_alarm"] == pytest.approx(0.2)
    assert result["event_recall_by_detector"] == {"timing": 0.5}
    assert result["false_alarms"] == 1
    assert result["benign_hours"] == pytest.approx((9.9 - 0.9 - 0.4) / 3600)
    assert (result["precision"], result["recall"], result["fnr"]) == (1.0, 2 / 15, 13 / 15)


@given(st.lists(st.tuples(st.integers(0, 2000), st.booleans()), min_size=2, max_size=60))
@settings(max_examples=60, deadline=None)
def test_average_precision_and_mcc_are_scikit_learns(rows: list[tuple[int, bool]]) -> None:
    from sklearn.metrics import average_precision_score, matthews_corrcoef

    score, y = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    benign, attack = np.bincount(score[~y], minlength=2001), np.bincount(score[y], minlength=2001)
    if y.any():
        assert average_precision(benign, attack) == pytest.approx(average_precision_score(y, score))
    said = score >= 1000
    mcc = binary_metrics(int((y & said).sum()), int((~y & said).sum()), int((y & ~said).sum()), int((~y & ~said).sum()))["mcc"]
    if mcc is not None:
        assert mcc == pytest.approx(matthews_corrcoef(y, said))


# --- models of the study


def test_id_encoding() -> None:
    frames = make_frames(range(3), [0x7FF, 0x1FFFFFFF, 0], np.zeros((3, 8), np.uint8), flags=[0, EXTENDED, 0])
    bits = id_bits(frames)
    assert bits[0].tolist() == [0] * 18 + [1] * 11
    assert bits[1].all()
    assert not bits[2].any()


def test_blocks_never_span_captures_and_drop_the_rest() -> None:
    n = 1000
    frames = make_frames(range(n), np.arange(n) % 5, np.zeros((n, 8), np.uint8), label=np.arange(n) == 30)
    x, y, rows = id_windows(frames)
    assert x.shape == (34, 1, 29, 29)  # 14 frames dropped
    assert np.flatnonzero(y).tolist() == [1]
    two = make_frames(range(n), np.arange(n) % 5, np.zeros((n, 8), np.uint8), capture=np.arange(n) >= 40, captures=("a", "b"))
    starts = block_starts(two, 29)
    assert starts.tolist() == [0, *range(40, 1000 - 28, 29)]
    assert rows[1] == 29


def test_parameter_counts_of_the_notes() -> None:
    torch = pytest.importorskip("torch")
    from edge_ids.can.models.deep import DCNN, FrameLSTM, parameters

    assert parameters(DCNN()) == 1_692_321
    assert parameters(FrameLSTM(9, 1)) == 1_071_617
    assert parameters(DCNN(residual=True)) == 1_692_321
    assert DCNN().eval()(torch.zeros(3, 1, 29, 29)).shape == (3, 1)


def test_lccde_decides_as_described() -> None:
    leaders = np.array([0, 1, 2])  # model i leads class i
    # rows: all agree on 1; two say 1 and the third 2: the leader of 1 (model 1) says 1;
    # none agree and only model 2 leads its class; none agree and none leads: the most confident.
    p = np.array(
        [
            [[0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.0, 0.6, 0.4]],
            [[0.2, 0.7, 0.1], [0.1, 0.6, 0.3], [0.8, 0.1, 0.1], [0.1, 0.0, 0.9]],
            [[0.1, 0.9, 0.0], [0.1, 0.1, 0.8], [0.1, 0.2, 0.7], [0.7, 0.2, 0.1]],
        ]
    )
    assert lccde_decision(p, leaders).argmax(axis=1).tolist() == [1, 1, 2, 2]


def test_smote_only_raises_small_attack_classes() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 9)), np.r_[np.zeros(40, int), np.full(15, 1), np.full(4, 2), 3]
    _, grown = smote(x, y, 20, 0)
    assert np.bincount(grown).tolist() == [40, 20, 20, 1]


def captures() -> Frames:
    parts = []
    for number in range(4):
        frames, _ = generate(12, seed=20 + number, name=f"c{number}")
        if number:
            frames = inject(frames, Attack("fuzzing", 2, 8, low=0x100 * number, high=0x100 * number + 50), seed=number).frames
        parts.append(frames)
    return concat(parts).sorted()


def test_the_papers_split_leaks_and_ours_does_not() -> None:
    """Near-duplicates: the share of test frames whose ID and payload stand in the training part, under both protocols."""
    frames = captures()
    shares = {}
    for protocol in ("paper", "time"):
        train, test, _ = split(frames, protocol, 0)
        assert not (train & test).any()
        rows = [bytes(row) for row in np.concatenate([frames.id[:, None].view(np.uint8), frames.data[:, :8]], axis=1)]
        seen = {row for row, use in zip(rows, train, strict=True) if use}
        shares[protocol] = np.mean([row in seen for row, use in zip(rows, test, strict=True) if use])
        if protocol == "time":
            assert not set(frames.capture[train]) & set(frames.capture[test])
    assert shares["paper"] > shares["time"]


def test_leakage_shows_in_the_scores() -> None:
    """Each capture attacks another ID: a random split has seen every attack, a split by capture has not."""
    parts = []
    for number in range(4):
        frames, _ = generate(12, seed=20, name=f"c{number}")
        if number:
            target = int(np.unique(frames.id)[3 * number])
            frames = inject(frames, Attack("fabrication", 2, 8, target=target), seed=number).frames
        parts.append(frames)
    frames = concat(parts).sorted()
    leaky, honest = (run(frames, "random-forest", protocol, seed=0).metrics["f1"] for protocol in ("paper", "time"))
    assert leaky > 0.99
    assert honest < 0.5
    with pytest.raises(InputError, match="no random frame split"):
        run(frames, "streaming", "paper")


def test_dcnn_learns_generated_attacks() -> None:
    pytest.importorskip("torch")
    frames = inject(generate(12, seed=1)[0], Attack("fuzzing", 2, 7), seed=1).frames
    from edge_ids.can.models import make

    x, y, _ = id_windows(frames)
    model = make("dcnn", epochs=3).fit(x, y, 2)
    losses = [epoch["train_loss"] for epoch in model.history.epochs]  # type: ignore[attr-defined]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("model", ["random-forest", pytest.param("dcnn", marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_compare_command_trains_the_models_under_both_protocols(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if model == "dcnn":
        pytest.importorskip("torch")
    for number in range(2):
        frames = generate(4, seed=30 + number, name=f"c{number}")[0]
        frames = inject(frames, Attack("fabrication", 0.5, 1.5), seed=number).frames
        frames = inject(frames, Attack("fuzzing", 2, 3.5), seed=number).frames
        write_frames(frames, tmp_path / "captures" / f"c{number}.parquet")
    command = ["can", "compare", "--data", str(tmp_path / "captures"), "--protocol", "both", "--multiclass", "--epochs", "1", "--json"]
    assert command_line(app, [*command, "--models", model, "--smote", "400", "--residual", "--out", str(tmp_path / "out")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["protocol"]) for row in document["results"]] == [(model, "time"), (model, "paper")]
    for row in document["results"]:
        assert set(row["metrics"]["f1_by_class"]) == {"benign", "fabrication", "fuzzing"}
        assert ("false_alarms_per_hour" in row["metrics"]) == (row["protocol"] == "time")
    assert document["synthetic"] is True
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == document
    assert command_line(app, [*command, "--models", "forest"]) == 2
    assert "random-forest" in capsys.readouterr().err

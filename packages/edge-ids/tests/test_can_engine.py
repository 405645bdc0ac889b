"""The streaming engine: arithmetic, equality of batch, stream and resume, calibration, what each detector sees."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edge_ids.can import engine
from edge_ids.can.detector import Detection, StreamingDetector
from edge_ids.can.frames import Frames, concat, make_frames
from edge_ids.can.generate import generate
from edge_ids.can.inject import Attack, inject
from edge_ids.can.metrics import Evaluation
from edge_ids.can.profile import OFF, Profile, bin_start, keys_of, payloads, train
from edge_ids.can.readers import read_frames
from edge_shared.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st

DATA = Path(os.environ.get("EDGEWISE_DATA", Path(__file__).parents[4] / "shared" / "data")) / "ids"


@pytest.fixture(scope="module")
def traffic() -> Frames:
    return generate(460, seed=1)[0]


@pytest.fixture(scope="module")
def profile(traffic: Frames) -> Profile:
    return train(first(traffic))


def first(frames: Frames) -> Frames:
    return frames.take(frames.time_us < frames.time_us[0] + 400_000_000)


def rest(frames: Frames) -> Frames:
    return frames.take(frames.time_us >= frames.time_us[0] + 400_000_000)


@given(st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=200, deadline=None)
def test_popcount_is_pythons(x: int) -> None:
    assert engine.popcount(np.int64(x)) == (x & (2**64 - 1)).bit_count()


@given(st.integers(0, 2**40), st.integers(0, 2**40))
@settings(max_examples=200, deadline=None)
def test_interval_bins_are_ordered_and_an_eighth_of_an_octave(a: int, b: int) -> None:
    low, high = engine.interval_bin(min(a, b)), engine.interval_bin(max(a, b))
    assert low <= high
    if high < engine.BINS - 1 and a >= 8:
        start = bin_start(engine.interval_bin(a))
        assert start <= a < start * 9 / 8 + 1


@given(st.sets(st.integers(0, 2**31), min_size=1, max_size=300), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_hash_table_is_a_dictionary(keys: set[int], other: int) -> None:
    from edge_ids.can.profile import _hash

    ordered = sorted(keys)
    table = _hash(np.array(ordered))
    for index, key in enumerate(ordered):
        assert engine.slot_of(*table, key) == index
    assert engine.slot_of(*table, other) == (ordered.index(other) if other in keys else -1)


def test_stream_equals_batch_equals_chunks_equals_resume(traffic: Frames, profile: Profile, tmp_path: Path) -> None:
    attacked = inject(rest(traffic), Attack("fuzzing", 5, 10), seed=1).frames
    attacked = inject(attacked, Attack("fabrication", 20, 30, 0x120), seed=2).frames
    attacked = inject(attacked, Attack("suspension", 40, 50, 0x290), seed=3).frames
    whole = StreamingDetector(profile)
    batch = whole.process(attacked)
    assert {found.detector for found in batch.detections} >= {"unknown-id", "timing", "silence"}

    single = StreamingDetector(profile)
    ratios, found = [], []
    columns = (attacked.time_us, keys_of(attacked, profile.channels), attacked.length, payloads(attacked))
    for time, key, length, payload in zip(*[column.tolist() for column in columns], strict=True):
        ratio, _, new = single.feed(time, key, 0, length, payload)
        ratios.append(ratio)
        found += new
    assert found == batch.detections
    np.testing.assert_array_equal(np.array(ratios, np.float32), batch.ratio_N)

    cuts = np.sort(np.random.default_rng(0).integers(0, len(attacked), 7)).tolist()
    chunked: list[Detection] = []
    detector = StreamingDetector(profile)
    for number, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(attacked)], strict=True)):
        chunked += detector.process(attacked.take(slice(start, end))).detections
        detector.save_state(tmp_path / f"{number}.state", {"position": end})
        detector = StreamingDetector(profile)  # killed here; a new process goes on
        assert detector.load_state(tmp_path / f"{number}.state") == {"position": end}
    assert chunked == batch.detections
    for mine, other in zip(detector.state, whole.state, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_alert_buffer_that_fills_up_loses_nothing(traffic: Frames, profile: Profile) -> None:
    attacked = inject(rest(traffic), Attack("dos", 5, 15), seed=1).frames
    expected = StreamingDetector(profile).process(attacked).detections
    small = StreamingDetector(profile)
    small._out = np.zeros((engine.COLUMNS + 5, 6), np.int64)
    assert small.process(attacked).detections == expected


def test_state_size_does_not_depend_on_traffic(profile: Profile) -> None:
    detector = StreamingDetector(profile)
    before = sum(array.nbytes for array in detector.state)
    n = 200_000
    rng = np.random.default_rng(0)
    ids = rng.permutation(50_000).repeat(4)
    detector.process(make_frames(np.arange(n) * 250, ids, rng.integers(0, 256, (n, 8), dtype=np.uint8), flags=1))
    assert sum(array.nbytes for array in detector.state) == before
    assert detector.unknown_frames == n


def test_no_alert_on_benign_generated_traffic(traffic: Frames, profile: Profile) -> None:
    assert profile.info["mature"]
    scores = StreamingDetector(profile).process(rest(traffic))
    assert scores.detections == []
    assert scores.ratio_N.max() < 1


@pytest.mark.parametrize(
    ("kind", "target", "detector"),
    [
        ("fuzzing", None, "unknown-id"),
        ("dos", None, "bus-load"),
        ("fabrication", 0x280, "timing"),
        ("correlated", 0x110, "timing"),
        ("replay", 0x280, "timing"),
        ("suspension", 0x410, "silence"),
        ("masquerade-constant", 0x120, "counter"),
        ("masquerade-replay", 0x120, "counter"),
        ("masquerade-offset", 0x280, "payload-jump"),
    ],
)
def test_each_attack_is_found_by_the_detector_made_for_it(
    traffic: Frames, profile: Profile, kind: str, target: int | None, detector: str
) -> None:
    background = rest(traffic)
    injection = inject(background, Attack(kind, 20, 35, target), seed=5)
    origin = int(background.time_us[0])
    planned = [(kind, *[origin + round(t * 1e6) for t in injection.interval])] if kind == "suspension" else None
    evaluation = Evaluation(planned)
    evaluation.add(injection.frames, StreamingDetector(profile).process(injection.frames))
    result = evaluation.result()
    assert result["event_recall"] == 1
    assert detector in result["event_recall_by_detector"]
    assert result["false_alarms"] == 0


def test_timing_is_blind_to_masquerade_and_sees_fabrication(traffic: Frames, profile: Profile) -> None:
    """The same forged bytes: with the legitimate frames removed, nothing in the timing tells (its AUC is that of a coin)."""
    from sklearn.metrics import roc_auc_score

    background = rest(traffic)
    areas = {}
    for kind in ("masquerade", "fabrication"):
        frames = inject(background, Attack(kind, 10, 50, 0x280), seed=1).frames
        detector = StreamingDetector(profile)
        key = 0x280
        k = profile.keys_K.tolist().index(key)
        sums = []
        columns = (frames.time_us, keys_of(frames, profile.channels), frames.length, payloads(frames))
        for time, frame_key, length, payload in zip(*[column.tolist() for column in columns], strict=True):
            detector.feed(time, frame_key, 0, length, payload)
            sums.append(int(detector.state.sums_KD[k, engine.TIMING]) if frame_key == key else -1)
        rows = frames.id == 0x280
        areas[kind] = roc_auc_score(frames.attack[rows], np.array(sums)[rows])
    assert abs(areas["masquerade"] - 0.5) < 0.05
    assert areas["fabrication"] > 0.7


def test_a_higher_threshold_never_alarms_earlier(traffic: Frames, profile: Profile) -> None:
    attacked = inject(rest(traffic), Attack("fabrication", 5, 50, 0x280), seed=2).frames
    higher = replace(profile, model=profile.model._replace(threshold_KD=np.minimum(profile.model.threshold_KD * 2, OFF)))
    low, high = (StreamingDetector(p).process(attacked) for p in (profile, higher))
    assert (low.ratio_N >= 1).any()
    first_low = np.argmax(low.ratio_N >= 1)
    assert not (high.ratio_N[:first_low] >= 1).any()  # up to there the sums are the same


def test_stall_of_the_logger_is_no_attack(traffic: Frames, profile: Profile) -> None:
    """Frames of 40 ms held up and delivered at once, and a log with 5 s missing: no alert for timing or single IDs."""
    frames = rest(traffic)
    time = frames.time_us - frames.time_us[0]
    held = (time >= 10_000_000) & (time < 10_040_000)
    bunched = replace(frames, time_us=np.where(held, 10_040_000 - held[::-1].cumsum()[::-1], time))
    assert StreamingDetector(profile).process(bunched).detections == []
    hole = frames.take((time < 20_000_000) | (time > 25_000_000))
    assert {(found.detector, found.key) for found in StreamingDetector(profile).process(hole).detections} == {("silence", -1)}


def test_clock_going_back_starts_over(traffic: Frames, profile: Profile) -> None:
    frames = rest(traffic)
    middle = frames.time_us[len(frames) // 2]
    swapped = concat([frames.take(frames.time_us >= middle), frames.take(frames.time_us < middle)])
    assert StreamingDetector(profile).process(swapped).detections == []


def test_the_same_recording_twice_is_a_replay(traffic: Frames, profile: Profile) -> None:
    frames = rest(traffic)
    assert {found.detector for found in StreamingDetector(profile).process(concat([frames, frames])).detections} == {"repeat"}


def test_profile_round_trip_and_damage(profile: Profile, tmp_path: Path) -> None:
    profile.save(tmp_path)
    back = Profile.load(tmp_path)
    assert back.version == profile.version
    raw = bytearray((tmp_path / "profile.npz").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "profile.npz").write_bytes(bytes(raw))
    with pytest.raises(InputError, match="damaged"):
        Profile.load(tmp_path)
    for raw in (b"", b"PK", b"\x93NUMPY"):  # numpy has another exception for each
        (tmp_path / "profile.npz").write_bytes(raw)
        meta = json.loads((tmp_path / "profile.json").read_text())
        (tmp_path / "profile.json").write_text(json.dumps(meta | {"sha256": hashlib.sha256(raw).hexdigest()}))
        with pytest.raises(InputError, match="holds no profile"):
            Profile.load(tmp_path)
    with pytest.raises(InputError, match=r"no profile\.json"):
        Profile.load(tmp_path / "none")
    (tmp_path / "profile.json").write_text("[]")
    with pytest.raises(InputError, match="format"):
        Profile.load(tmp_path)


@pytest.mark.parametrize("name", ["hash_slot_H", "repeat_K", "checksum_K4", "cross_KCX", "threshold_KD", "limits"])
def test_a_profile_that_points_outside_of_itself_is_refused(name: str, profile: Profile, tmp_path: Path) -> None:
    """Compiled code would read there: too large an index, or an array too short, whatever checksum comes with it."""
    array = getattr(profile.model, name)
    wrong = (
        array[:-1]
        if name in ("threshold_KD", "limits")
        else np.where(profile.model.hash_key_H >= 0, 9999, array)
        if "_H" in name
        else array + 9999
    )
    replace(profile, model=profile.model._replace(**{name: wrong})).save(tmp_path)
    with pytest.raises(InputError, match=f"holds no profile .*{name}"):
        Profile.load(tmp_path)


def test_state_of_another_model_is_refused(profile: Profile, traffic: Frames, tmp_path: Path) -> None:
    StreamingDetector(profile).save_state(tmp_path / "s")
    other = StreamingDetector(train(rest(traffic)))
    with pytest.raises(InputError, match="another model"):
        other.load_state(tmp_path / "s")
    (tmp_path / "bad").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no state"):
        other.load_state(tmp_path / "bad")


def test_training_leaves_attack_frames_out(traffic: Frames) -> None:
    benign = rest(traffic)
    attacked = inject(benign, Attack("fuzzing", 5, 10), seed=1).frames
    assert train(attacked).keys_K.tolist() == train(benign).keys_K.tolist()
    with pytest.raises(InputError, match="at least 100 benign frames"):
        train(benign.take(slice(0, 50)))


@pytest.mark.skipif(not DATA.exists(), reason="real traces are not here")
@pytest.mark.parametrize("name", ["can_crysys_trace48/48.csv", "can_icsim/sample-can.log"])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75])
def test_no_false_alarm_on_real_benign_traffic(name: str, share: float) -> None:
    frames, _ = read_frames(DATA / name)
    cut = int(share * len(frames))
    scores = StreamingDetector(train(frames.take(slice(0, cut)))).process(frames.take(slice(cut, None)))
    assert [found for found in scores.detections if not found.anomaly] == []
    assert scores.ratio_N.max() < 1


@pytest.mark.skipif(not DATA.exists(), reason="real traces are not here")
@pytest.mark.parametrize("kind", ["fuzzing", "fabrication", "dos"])
def test_attacks_on_real_background_are_found(kind: str) -> None:
    frames, _ = read_frames(DATA / "can_crysys_trace48" / "48.csv")
    cut = len(frames) // 2
    profile, background = train(frames.take(slice(0, cut))), frames.take(slice(cut, None))
    targets = [None] if kind != "fabrication" else np.unique(background.id).tolist()
    for target in targets:
        injection = inject(background, Attack(kind, 8, 16, target), seed=1)
        evaluation = Evaluation()
        evaluation.add(injection.frames, StreamingDetector(profile).process(injection.frames))
        result = evaluation.result()
        assert (result["event_recall"], result["false_alarms"]) == (1, 0), target

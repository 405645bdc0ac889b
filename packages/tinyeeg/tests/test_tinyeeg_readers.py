"""Files as headsets write them: columns, units, times, gaps, missing values, copies, and their refusals."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from edge_shared.errors import InputError
from scipy.io import savemat
from tinyeeg import presets, readers
from tinyeeg.readers import mat
from tinyeeg.readers.aci import read_aci_mat
from tinyeeg.readers.emotiv import EPOC
from tinyeeg.recording import Recording, Span
from tinyeeg.table import extract

REAL = Path(os.environ.get("EDGEWISE_DATA", Path(__file__).parents[4] / "shared" / "data")) / "eeg"


def write_muse(path, times, values, header="timestamps,TP9,AF7,AF8,TP10,Right AUX"):
    rows = [",".join([f"{time:.6f}", *("" if np.isnan(v) else f"{v:.4f}" for v in row)]) for time, row in zip(times, values, strict=True)]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.fixture
def signal():
    return np.random.default_rng(0).normal(size=(2560, 5)).round(3) * 10 + 800


def test_muse_lsl(tmp_path, signal):
    found = readers.read(write_muse(tmp_path / "subjectb-relaxed-2.csv", 1.5e9 + np.arange(2560) / 256, signal))
    assert found.channels == ("TP9", "AF7", "AF8", "TP10")
    assert found.sfreq == 256.0
    assert found.started == pytest.approx(1.5e9)
    np.testing.assert_allclose(found.signal, signal[:, :4].T, atol=1e-4)
    folder = readers.read_folder(tmp_path)
    assert [(r.subject, r.session, r.spans) for r in folder.recordings] == [("subjectb", "2", (Span(0, 2560, "relaxed"),))]


def test_a_long_gap_splits_and_no_window_crosses_it(tmp_path, signal):
    times = np.arange(2560) / 256
    times[1280:] += 700
    recording = readers.read_folder(write_muse(tmp_path / "subjecta-neutral-1.csv", times, signal)).recordings[0]
    assert recording.gaps == (1280,)
    assert recording.gap_s[0] == pytest.approx(700, abs=0.01)
    other = Recording(recording.signal[:, ::-1].copy(), 256.0, recording.channels, (Span(0, 2560, "other"),), subject="b")
    windows = extract([recording, other], presets.compact()).windows
    own = windows.recording == recording.fingerprint
    assert not ((windows.start[own] < 1280) & (windows.stop[own] > 1280)).any()
    assert windows.minutes[own].max() > 11


def test_a_lost_packet_is_interpolated(tmp_path, signal):
    keep = np.ones(2560, bool)
    keep[1000:1012] = False
    found = readers.read(write_muse(tmp_path / "x.csv", (np.arange(2560) / 256)[keep], signal[keep]))
    assert found.signal.shape == (4, 2560)
    assert found.gaps == ()
    assert found.notes == ("12 lost samples interpolated",)
    np.testing.assert_allclose(found.signal[:, 1005], signal[999, :4] + (signal[1012, :4] - signal[999, :4]) * 6 / 13, atol=1e-3)


def test_missing_values_short_ones_filled_long_ones_cut(tmp_path, signal):
    signal[100:110, 1] = np.nan
    signal[500:700, 2] = np.nan
    found = readers.read(write_muse(tmp_path / "x.csv", np.arange(2560) / 256, signal))
    assert found.gaps == (500,)
    assert found.signal.shape == (4, 2360)
    assert np.isfinite(found.signal).all()


@pytest.mark.parametrize(
    ("times", "rate"),
    [
        (np.arange(2560) / 256 * 1000, 256.0),  # milliseconds
        (np.repeat(np.arange(214), 12)[:2560] * 12 / 256, 256.0),  # radio packets that share a stamp
        (np.arange(2560) / 220, 220.0),  # the Muse of 2014
        (np.arange(2560) / 258.1, 256.0),  # a clock that is a little off
    ],
)
def test_sampling_rates(tmp_path, signal, times, rate):
    assert readers.read(write_muse(tmp_path / "x.csv", times, signal)).sfreq == rate


def test_volts_are_converted_and_constant_channels_named(tmp_path, signal):
    signal[:, 3] = 0
    path = tmp_path / "x.csv"
    rows = [",".join([f"{i / 256:.6f}", *(f"{v * 1e-6:.10f}" for v in row)]) for i, row in enumerate(signal)]
    path.write_text("\n".join(["time;TP9;AF7;AF8;TP10;Right AUX".replace(";", ","), *rows]))
    found = readers.read(path)
    np.testing.assert_allclose(found.signal, signal[:, :4].T, atol=1e-3)
    assert "channel TP10 is constant" in found.notes


def test_mind_monitor_with_markers_and_band_columns(tmp_path, signal):
    stamp = [datetime.fromtimestamp(1.6e9 + i / 256, UTC).strftime("%Y-%m-%d %H:%M:%S.%f") for i in range(2560)]
    rows = [f"{stamp[i]},0.5,0.4,{','.join(str(v) for v in signal[i, :4])}," for i in range(2560)]
    rows.insert(50, f"{stamp[50]},,,,,,,/muse/elements/blink")
    (tmp_path / "x.csv").write_text("\n".join(["TimeStamp,Delta_TP9,Alpha_AF7,RAW_TP9,RAW_AF7,RAW_AF8,RAW_TP10,Elements", *rows]))
    found = readers.read(tmp_path / "x.csv")
    assert found.channels == ("TP9", "AF7", "AF8", "TP10")
    assert found.signal.shape == (4, 2560)
    np.testing.assert_allclose(found.signal, signal[:, :4].T)


def test_emotiv_metadata_line_and_prefix(tmp_path, signal):
    values = np.concatenate([signal, signal, signal], axis=1)[:, :14]
    header = ",".join(["Timestamp", *(f"EEG.{site}" for site in EPOC)])
    rows = [",".join([f"{1.6e9 + i / 256:.6f}", *(f"{v:.3f}" for v in row)]) for i, row in enumerate(values)]
    (tmp_path / "x.csv").write_text("\n".join(["title:test, sampling rate:eeg_256", header, *rows]))
    found = readers.read(tmp_path / "x.csv")
    assert (found.channels, found.sfreq, found.signal.shape) == (EPOC, 256.0, (14, 2560))


def aci_file(path, samples, seed=0):
    data = np.random.default_rng(seed).normal(size=(samples, 25)).round(2)
    data[:, 3:17] += np.arange(14) * 100 + 4000
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"o": {"data": data, "sampFreq": 128, "marker": 0, "timestamp": 0, "trials": 0}})
    return data


def test_a_matlab_file_that_crashes_its_reader_ends_with_a_line(tmp_path, monkeypatch):
    """scipy 1.17 dies of a segmentation fault on some damaged files; the process that reads them is not ours."""
    aci_file(tmp_path / "eeg_record5.mat", 128)
    for harm, words in (
        ("import os; os.kill(os.getpid(), 11)", "is damaged"),
        ("raise MemoryError", "is damaged"),
        ("while True: pass", "1 s"),
    ):
        monkeypatch.setattr(mat, "_CHILD", harm)
        monkeypatch.setattr(mat, "SECONDS", 1)
        with pytest.raises(InputError, match=words):
            read_aci_mat(tmp_path / "eeg_record5.mat")


def test_a_matlab_file_larger_than_memory_ends_with_a_line(tmp_path, monkeypatch):
    aci_file(tmp_path / "eeg_record5.mat", 128 * 600)
    monkeypatch.setattr(mat, "MEMORY", 100 << 20)
    with pytest.raises(InputError, match="eeg_record5"):
        read_aci_mat(tmp_path / "eeg_record5.mat")


def test_aci_set(tmp_path):
    data = aci_file(tmp_path / "eeg_record5.mat", 128 * 1900)
    aci_file(tmp_path / "eeg_record9.mat", 128 * 60, seed=1)
    aci_file(tmp_path / "eeg_record31.mat", 128 * 1700, seed=2)
    aci_file(tmp_path / "nested" / "eeg_record5.mat", 128 * 1900)
    found = readers.read(tmp_path / "eeg_record5.mat")
    assert (found.channels, found.sfreq, found.subject, found.session) == (EPOC, 128.0, "1", "5")
    np.testing.assert_array_equal(found.signal, data[:, 3:17].T)
    assert found.spans == (Span(0, 76800, "focused"), Span(76800, 153600, "unfocused"), Span(153600, 230400, "drowsy"))
    folder = readers.read_folder(tmp_path)
    assert [recording.name for recording in folder.recordings] == ["eeg_record5.mat"]
    assert folder.copies == (("nested/eeg_record5.mat", "eeg_record5.mat"),)
    assert set(folder.left_out) == {("eeg_record9.mat", "habituation"), ("eeg_record31.mat", "incomplete")}
    assert len(readers.read_folder(tmp_path, all_roles=True).recordings) == 3


def test_mne_round_trip_in_volts_with_annotations():
    x = np.random.default_rng(0).normal(size=(2, 1000)) * 30
    recording = Recording(
        x, 250.0, ("O1", "O2"), (Span(0, 400, "focused"), Span(400, 1000, "drowsy")), (300,), (2.5,), subject="7", started=1.6e9
    )
    raw = recording.to_raw()
    np.testing.assert_allclose(raw.get_data() * 1e6, x)
    assert raw.info["sfreq"] == 250.0
    assert raw.copy().pick(["O2"]).ch_names == ["O2"]
    assert raw.set_montage("easycap-M1").get_montage() is not None
    again = Recording.from_raw(raw, subject="7")
    assert again.spans == recording.spans
    assert again.gaps == (300,)
    np.testing.assert_allclose(again.signal, x)


def test_bad_annotations_are_cut_out_of_states():
    import mne

    raw = mne.io.RawArray(np.zeros((1, 1000)), mne.create_info(["Cz"], 100.0, "eeg"), verbose="error")
    raw.set_annotations(mne.Annotations([0, 3], [10, 2], ["rest", "BAD_blink"]))
    assert [(s.start, s.stop) for s in Recording.from_raw(raw).stretches()] == [(0, 300), (500, 1000)]


def marked(durations, texts=("rest", "count", "rest")):
    import mne

    raw = mne.io.RawArray(np.random.default_rng(0).normal(size=(1, 3000)) * 1e-5, mne.create_info(["Cz"], 100.0, "eeg"), verbose="error")
    return raw.set_annotations(mne.Annotations([2, 10, 20], durations, list(texts)))


@pytest.mark.parametrize("ending", ["_raw.fif", "-raw.fif.gz"])
def test_markers_hold_until_the_next_one_unless_the_name_tells_the_state(tmp_path, ending):
    marked([0, 0.01, 0]).save(tmp_path / f"subjecta{ending}", verbose="error")
    other = marked([0, 0, 0], ("start", "blink", "blink"))
    other._data = other._data[:, ::-1].copy()  # not a copy of the first
    other.save(tmp_path / f"subjectb-rest-2{ending}", verbose="error")
    first, second = readers.read_folder(tmp_path).recordings
    assert [(s.start, s.stop, s.state) for s in first.spans] == [(200, 1000, "rest"), (1000, 2000, "count"), (2000, 3000, "rest")]
    assert (second.subject, second.session, [s.state for s in second.stretches()]) == ("subjectb", "2", ["rest"])
    assert list(readers.read_raw(tmp_path / f"subjecta{ending}").annotations.description) == ["rest", "count", "rest"]


def test_a_length_anywhere_makes_the_other_annotations_markers():
    recording = Recording.from_raw(marked([5, 0, 5])).held()
    assert [(s.start, s.stop) for s in recording.stretches()] == [(200, 700), (2000, 2500)]


def test_brainvision_states_are_spelt_as_elsewhere(tmp_path):
    pytest.importorskip("pybv")
    marked([5, 5, 5]).export(tmp_path / "subjecta.vhdr", verbose="error")
    assert [s.state for s in readers.read(tmp_path / "subjecta.vhdr").spans] == ["rest", "count", "rest"]


def test_resampling_keeps_a_sine_and_the_borders():
    t = np.arange(2000) / 250
    recording = Recording(
        np.sin(2 * np.pi * 10 * t)[None] + 5, 250.0, ("Cz",), (Span(0, 1000, "a"), Span(1000, 2000, "b")), (1000,), (1.0,)
    )
    found = recording.resampled(256.0)
    assert found.gaps == (1024,)
    assert found.spans == (Span(0, 1024, "a"), Span(1024, 2048, "b"))
    inner = slice(100, 900)
    np.testing.assert_allclose(found.signal[0, inner], np.sin(2 * np.pi * 10 * np.arange(2048) / 256)[inner] + 5, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.csv", "", "is empty"),
        ("x.csv", "timestamps,TP9\n", "no samples"),
        ("x.csv", "timestamps,TP9\n0.0,abc\n0.1,2\n", "x.csv:2: 'abc' in column 'TP9' is no number"),
        ("x.csv", "timestamps,Delta_TP9,marker\n0.0,1,a\n0.1,2,b\n", "no EEG column"),
        ("x.csv", "timestamps,TP9\n1,1\n1,2\n1,3\n", "do not move"),
        ("x.wav", "", "unknown ending"),
        ("x.mat", "no", "no recording of the Aci set"),
        ("x.edf", "no", "MNE cannot read it"),
    ],
)
def test_bad_files_are_named(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        readers.read(tmp_path / name)


def test_other_tables_beside_recordings_are_left_out(tmp_path, signal):
    write_muse(tmp_path / "subjecta-neutral-1.csv", np.arange(2560) / 256, signal)
    (tmp_path / "features.csv").write_text("mean,std\n1,2\n")
    folder = readers.read_folder(tmp_path)
    assert len(folder.recordings) == 1
    assert folder.left_out == (("features.csv", "its name does not fit the pattern"),)


@pytest.mark.skipif(not REAL.exists(), reason="real EEG is not on this machine")
def test_real_files():
    eye = readers.read(REAL / "eeg_eye_state" / "eeg-eye-state.csv")
    assert (eye.signal.shape, len(eye.spans), eye.notes) == ((14, 14980), 24, ("4 outlier samples interpolated",))
    assert readers.read(REAL / "eeglab_sample" / "testmusemonitor.csv").channels == ("TP9", "AF7", "AF8", "TP10")
    eeglab = readers.read(REAL / "eeglab_sample" / "eeglab_data.set")
    assert (eeglab.sfreq, eeglab.signal.shape) == (128.0, (32, 30504))
    assert 1 < np.median(eeglab.signal.std(axis=1)) < 100
    assert readers.read(REAL / "eeglab_sample" / "test.bdf").signal.shape == (16, 15360)

"""BIDS out and in: the same samples, states, gaps, people and sessions."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from edge_shared.cli import run
from edge_shared.errors import InputError
from tinyeeg import bids, readers, synthetic
from tinyeeg.cli import app
from tinyeeg.recording import Recording, Span

pytest.importorskip("mne_bids")
pytest.importorskip("pybv")


def test_round_trip(tmp_path):
    x = np.random.default_rng(0).normal(size=(2, 1000)) * 30 + 800
    two = Recording(
        x, 250.0, ("O1", "O2"), (Span(0, 400, "focused"), Span(400, 1000, "drowsy")), (300,), (2.5,), subject="p-7", session="2",
        started=1.6e9,
    )  # fmt: skip
    paths = bids.write_bids(tmp_path, [two, replace(two, signal=x[:, ::-1].copy(), session="3")])
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        "sub-p7/ses-2/eeg/sub-p7_ses-2_task-attention_run-01_eeg.vhdr",
        "sub-p7/ses-3/eeg/sub-p7_ses-3_task-attention_run-01_eeg.vhdr",
    ]
    sidecar = json.loads(paths[0].with_suffix(".json").read_text())
    assert (sidecar["SamplingFrequency"], sidecar["PowerLineFrequency"], sidecar["TaskName"]) == (250.0, 50.0, "attention")
    folder = readers.read_folder(tmp_path)
    first = folder.recordings[0]
    np.testing.assert_allclose(first.signal, x, atol=0.06)  # BrainVision keeps tenths of a microvolt
    assert (first.sfreq, first.channels, first.subject, first.session) == (250.0, ("O1", "O2"), "p7", "2")
    assert first.spans == two.spans
    assert first.gaps == (300,)
    assert first.started == pytest.approx(1.6e9)
    assert not first.synthetic
    assert [recording.session for recording in folder.recordings] == ["2", "3"]


def test_names_that_bids_cannot_tell_apart_are_refused(tmp_path):
    one = synthetic.generate(subjects=1, sessions=1, seconds=3)[0]
    with pytest.raises(InputError, match="differ in signs only"):
        bids.write_bids(tmp_path, [replace(one, subject="a-1"), replace(one, subject="a1")])


def test_convert_then_train(tmp_path, capsys):
    """The synthetic mark survives, and training on the BIDS folder gives what training on the files gives."""
    csv, out = tmp_path / "csv", tmp_path / "bids"
    assert run(app, ["generate", "--out", str(csv), "--subjects", "2", "--sessions", "1", "--seconds", "15"]) == 0
    assert run(app, ["convert", "--csv-dir", str(csv), "--out", str(out)]) == 0
    capsys.readouterr()
    scores = []
    for source in (["--csv-dir", str(csv)], ["--data", str(out)]):
        assert run(app, ["train", *source, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["synthetic"]
        scores.append((document["windows"], document["metrics"]["balanced_accuracy"]))
    assert scores[0][0] == scores[1][0]
    assert scores[0][1] == pytest.approx(scores[1][1], abs=0.02)


def test_a_folder_without_recordings_is_named(tmp_path):
    (tmp_path / "dataset_description.json").write_text("{}")
    with pytest.raises(InputError, match="without an EEG recording"):
        readers.read_folder(tmp_path)

"""The command as a user runs it: one JSON document, exit codes, one-line errors, folders that other commands take."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from edge_shared.cli import run
from tinyeeg import readers
from tinyeeg.cli import app
from tinyeeg.deployed import Deployed
from tinyeeg.live import Chunk, decide


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("csv")
    assert run(app, ["generate", "--out", str(path), "--subjects", "3", "--sessions", "2", "--seconds", "20"]) == 0
    return path


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert run(app, ["train", "--csv-dir", str(folder), "--protocol", "cross-subject", "--out", str(out), "--json"]) == 0
    return out


def test_train_prints_one_document_with_every_fold(folder, capsys):
    arguments = ["train", "--csv-dir", str(folder), "--protocol", "cross-subject", "--json"]
    assert run(app, arguments) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    folds = document["metrics"]["folds"]
    assert [fold["fold"] for fold in folds] == ["subjecta", "subjectb", "subjectc"]
    assert document["metrics"]["balanced_accuracy"] == pytest.approx(np.mean([fold["balanced_accuracy"] for fold in folds]))
    assert document["synthetic"] is True
    assert document["normalise"] == "session"
    assert document["metrics"]["balanced_accuracy"] > document["metrics"]["balanced_accuracy_without_person"]
    assert run(app, arguments) == 0
    assert json.loads(capsys.readouterr().out) == document


def test_train_works_offline_without_a_word(capsys):
    assert run(app, ["train", "--protocol", "within-session", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["synthetic"]
    assert len(document["metrics"]["folds"]) == 40


def test_run_folder_holds_what_the_other_commands_take(trained, folder, tmp_path, capsys):
    assert {"result.json", "report.html", "model.json", "folds.png", "folds.svg", "confusion.png"} <= {p.name for p in trained.iterdir()}
    assert "synthetic" in (trained / "report.html").read_text().casefold()
    capsys.readouterr()
    code = ["export", "--model", str(trained), "--out", str(tmp_path / "c"), "--fixed-point", "q15", "--board", "nrf52840", "--json"]
    assert run(app, code) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["board"]["board"] == "nrf52840"
    assert "tinyeeg.c" in document["files"]
    assert run(app, ["report", "--run", str(trained), "--out", str(tmp_path / "report"), "--json"]) == 0
    assert (tmp_path / "report" / "leaky.png").exists()


def test_a_board_that_is_too_small_fails_with_one(trained, tmp_path, capsys):
    from edge_shared import devices

    profile = devices.load("nrf52840").model_dump(mode="json")
    profile |= {"name": "tiny", "ram_total": 8192, "ram_largest_region": 8192}
    lines = [f"{key} = {json.dumps(value)}" for key, value in profile.items() if key != "caches"]
    (tmp_path / "tiny.toml").write_text("\n".join(lines))
    assert (
        run(app, ["export", "--model", str(trained), "--out", str(tmp_path / "c"), "--board", str(tmp_path / "tiny.toml"), "--json"]) == 1
    )
    captured = capsys.readouterr()
    assert "RAM bytes" in captured.err
    assert json.loads(captured.out)["board"]["board"] == "tiny"


def test_stream_decides_as_the_batch(trained, folder, capsys):
    capsys.readouterr()
    recording = folder / "subjectb-focused-1.csv"
    assert run(app, ["stream", "--model", str(trained), "--replay", str(recording), "--chunk", "17", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    model = Deployed.load(trained)
    wanted = model.predict(model.chain.features(readers.read(recording).pick(model.chain.channels).signal))
    assert [line["state"] for line in lines[:-1]] == [model.classes[k] for k in wanted]
    assert lines[-1]["summary"]["decisions"] == len(wanted)
    assert lines[-1]["summary"]["dropped"] == 0


def test_dropped_samples_restart_the_chain_and_are_counted(trained):
    model = Deployed.load(trained)
    x = np.random.default_rng(0).normal(size=(4, 2000)) + 800
    decisions = []
    source = iter([Chunk(x[:, :1000], 3.9), Chunk(x[:, 1000:], 8.0, dropped=50)])
    summary = decide(source, model, on_decision=decisions.append)
    assert (summary.dropped, summary.gaps) == (50, 1)
    assert summary.decisions == 2 * model.chain.n_frames(1000)
    assert [decision.after_gap for decision in decisions].index(True) == model.chain.n_frames(1000)


def test_calibration_in_a_stream_is_the_mean_of_its_vectors(trained):
    model = Deployed.load(trained)
    x = np.random.default_rng(1).normal(size=(4, 256 * 20)).cumsum(axis=1)
    decisions = []
    decide(
        iter([Chunk(x[:, k : k + 256], (k + 256) / 256) for k in range(0, 5120, 256)]),
        model,
        calibrate_s=10.0,
        on_decision=decisions.append,
    )
    features = model.chain.features(x)
    first = [decision.calibrating for decision in decisions].index(False)
    wanted = model.scores(features[first:], features[:first].mean(axis=0))
    np.testing.assert_allclose([decision.scores for decision in decisions[first:]], wanted, atol=1e-8)


def test_audit_exit_codes(folder, tmp_path, capsys):
    assert run(app, ["audit", "--csv-dir", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["leaks"] == []
    assert run(app, ["audit", "--csv-dir", str(folder), "--protocol", "random-windows", "--json"]) == 1
    captured = capsys.readouterr()
    assert {leak["kind"] for leak in json.loads(captured.out)["leaks"]} == {"overlap"}
    assert captured.err.count("error:") == 1
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "subjectz-focused-9.csv").write_bytes((folder / "subjecta-focused-1.csv").read_bytes())
    assert run(app, ["audit", "--csv-dir", str(tmp_path), "--json"]) == 1
    assert [leak["kind"] for leak in json.loads(capsys.readouterr().out)["leaks"]] == ["copy"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--csv-dir", "/nowhere"], "no such file or folder"),
        (["train", "--protocol", "kfold"], "--protocol kfold: not known; choose from"),
        (["train", "--model", "svc"], "--model svc: not known; choose from"),
        (["train", "--preset", "wang2023"], "--preset wang2023: not known"),
        (["train", "--preset", "aci2019-stft", "--channels", "Cz"], "no channel 'Cz'; it has TP9"),
        (["train", "--normalise", "state"], "--normalise state: not known"),
        (["train", "--protocol", "adaptable", "--calibration", "1"], "--calibration 1 s is shorter than one window"),
        (["audit", "--split", "/nowhere.json"], "cannot read split"),
        (["export", "--model", "/nowhere", "--out", "/tmp/x"], "cannot read model"),
        (["stream", "--model", "x.json"], "give one of --replay, --lsl and --brainflow"),
        (["generate", "--out", "/tmp/x", "--headset", "cap"], "--headset cap: not known"),
        (["report", "--run", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_two(arguments, words, capsys):
    assert run(app, arguments) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert words in errors[0]
    assert captured.out == ""


def test_a_bad_pattern_and_a_broken_model_are_named(folder, tmp_path, capsys):
    assert run(app, ["train", "--csv-dir", str(folder), "--pattern", "("]) == 2
    (tmp_path / "model.json").write_text('{"format": "tinyeeg-model-1"}')
    assert run(app, ["export", "--model", str(tmp_path), "--out", str(tmp_path / "c")]) == 2
    assert "is no model of tinyeeg" in capsys.readouterr().err


def test_help_and_import_need_no_heavy_module():
    code = (
        "import sys, tinyeeg, tinyeeg.cli; sys.exit(int(any(m in sys.modules for m in ('torch', 'mne', 'sklearn', 'scipy', 'matplotlib'))))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_training_never_imports_torch():
    code = "import sys; from tinyeeg import synthetic, training, presets; training.train(synthetic.generate(seconds=10, subjects=2), chain=presets.compact()); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

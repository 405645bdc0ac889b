"""The firmware against Python: the same decisions, the same calibrated layer to the bit, no heap, within the board."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from edge_shared.cli import run
from edge_shared.errors import InputError
from mcu_attention import calibration, firmware, recordings, workflow
from mcu_attention.cli import app
from tinyeeg import synthetic, training

needs_cc = pytest.mark.skipif(not (shutil.which("cc") and shutil.which("make")), reason="no C compiler")
needs_qemu = pytest.mark.skipif(
    not (shutil.which("arm-none-eabi-gcc") and shutil.which("qemu-system-arm") and shutil.which("make")), reason="no arm tools"
)
PEOPLE = synthetic.generate(subjects=4, sessions=1, seconds=24, seed=1)
WEARER = [recording for recording in PEOPLE if recording.subject == "subjectd"]
SANITIZE = "-DTRACE -g -fsanitize=address,undefined -fno-sanitize-recover=all"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("firmware")
    return folder, workflow.build([recording for recording in PEOPLE if recording.subject != "subjectd"], folder)


@pytest.fixture(scope="module")
def model(built):
    return firmware.load(built[0])


@pytest.fixture(scope="module")
def stretches(model):
    return recordings.plan(WEARER, model[0].chain, model[0].classes, 30)


def test_without_labels_the_layer_is_that_of_training(model):
    """P m0 and -1/2 m0 P m0 are scikit-learn's coef_ and intercept_ of an LDA with equal priors."""
    deployed, prior = model
    layer = calibration.solve(prior)
    linear = deployed.model
    np.testing.assert_allclose(layer.weights, linear.weights, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(layer.bias - layer.bias[0], linear.bias - linear.bias[0], atol=1e-4)
    np.testing.assert_allclose(layer.center, deployed.center, rtol=1e-6)


def test_the_calibrated_means_are_those_of_the_formula_in_float64(model):
    deployed, prior = model
    rng = np.random.default_rng(0)
    states = rng.integers(0, 3, 90)
    f = deployed.center + deployed.scale * rng.normal(size=(90, 20)) + states[:, None]
    layer = calibration.solve(prior, f.astype(np.float32), states)
    class_means = np.array([f[states == k].mean(axis=0) for k in range(3)])
    center = class_means.mean(axis=0)
    n = np.bincount(states)[:, None]
    means = (prior.weight * prior.means + n * (class_means - center) * prior.inverse) / (prior.weight + n)
    weights = means @ prior.precision.astype(float)
    np.testing.assert_allclose(layer.center, center, rtol=1e-5)
    np.testing.assert_allclose(layer.weights, weights, atol=2e-4 * np.abs(weights).max())
    np.testing.assert_allclose(layer.bias, -0.5 * (means * weights).sum(axis=1), atol=1e-3 * np.abs(layer.bias).max())
    one_state = calibration.solve(prior, f[:5].astype(np.float32), np.zeros(5, int))
    np.testing.assert_array_equal(one_state.weights, calibration.solve(prior).weights)


def test_a_calibration_that_shows_another_person_moves_the_decisions(model):
    """With many labels the wearer's own means decide: a person whose states are turned round is told right."""
    _, prior = model
    rng = np.random.default_rng(1)
    states = rng.integers(0, 3, 600)
    z = prior.means[[2, 0, 1]][states] + rng.normal(0, 0.1, (600, 20))
    f = (prior.center + 4 + z / prior.inverse).astype(np.float32)
    shipped = calibration.decide(prior, calibration.solve(prior), f)
    taught = calibration.decide(prior, calibration.solve(prior, f[:300], states[:300]), f)
    assert workflow.balanced(states[300:], taught[300:]) > 0.95
    assert workflow.balanced(states[300:], shipped[300:]) < 0.5


@needs_cc
def test_c_equals_python_bit_for_bit_and_is_clean_under_sanitizers(tmp_path, model, stretches):
    deployed, prior = model
    firmware.write(tmp_path, deployed, prior)
    output = firmware.run(tmp_path, recordings.encode(stretches), "host", SANITIZE)
    features = [deployed.chain.features(stretch.samples.astype(float)) for stretch in stretches]
    np.testing.assert_allclose(output.features, np.concatenate(features), atol=1e-3)
    states = np.concatenate([np.full(len(rows), stretch.state) for rows, stretch in zip(features, stretches, strict=True)])
    told = np.concatenate([np.full(len(rows), stretch.labelled) for rows, stretch in zip(features, stretches, strict=True)])
    layer = calibration.solve(prior, output.features[told], states[told])
    for name in ("weights", "bias", "center"):
        np.testing.assert_array_equal(getattr(output.layer, name).view(np.uint32), getattr(layer, name).view(np.uint32))
    np.testing.assert_array_equal(output.decisions, calibration.decide(prior, layer, output.features[~told]))
    assert output.numbers["labelled"] == told.sum()
    assert len(output.seconds) == sum(stretch.samples.shape[1] // 256 for stretch in stretches)
    assert output.seconds[0].startswith("1 calibrating ")


@needs_qemu
def test_the_emulated_cortex_m4_prints_what_the_host_prints(tmp_path, model, stretches):
    deployed, prior = model
    firmware.write(tmp_path, deployed, prior)
    short = [replace(stretch, samples=stretch.samples[:, : 256 * 5]) for stretch in stretches]
    host, emulated = (firmware.run(tmp_path, recordings.encode(short), target, "-DTRACE") for target in ("host", "qemu"))
    assert emulated.seconds == host.seconds
    np.testing.assert_array_equal(emulated.features, host.features)
    np.testing.assert_array_equal(emulated.layer.weights, host.layer.weights)
    np.testing.assert_array_equal(emulated.decisions, host.decisions)
    assert emulated.numbers["decision_ticks"] > 0
    assert 0 < emulated.numbers["stack"] < 2048


@needs_qemu
def test_no_heap_and_small_enough(tmp_path, built):
    folder, found = built
    assert found.size["flash_bytes"] <= 24_000
    assert found.size["ram_bytes"] <= 16_000
    firmware.write(tmp_path, *firmware.load(folder))
    firmware.size(tmp_path)
    names = subprocess.run(["arm-none-eabi-nm", tmp_path / "firmware.elf"], capture_output=True, text=True, check=True).stdout.split()
    assert not {"malloc", "_malloc_r", "free", "_sbrk", "printf", "fopen", "expf", "logf"} & set(names)


def test_plan_shares_the_calibration_and_uses_each_sample_once(model):
    chain, classes = model[0].chain, model[0].classes
    found = recordings.plan(WEARER, chain, classes, 30)
    told = [stretch for stretch in found if stretch.labelled]
    assert [stretch.samples.shape[1] for stretch in told] == [2560] * 3
    assert sum(stretch.samples.shape[1] for stretch in found) == sum(recording.n_times for recording in WEARER)
    assert not any(stretch.labelled for stretch in recordings.plan(WEARER, chain, classes, 0))
    for wrong, words in (
        ((PEOPLE, chain, classes, 30), "a device is worn by one"),
        ((WEARER, chain, classes, 3), "less than one window"),
        ((WEARER, chain, classes, 72), "leaves nothing to tell"),
        ((WEARER[:1], chain, classes, 30), "too little of"),
        ((WEARER, chain, ("a", "b", "c"), 30), "does not know the state"),
    ):
        with pytest.raises(InputError, match=words):
            recordings.plan(*wrong)


def test_calibration_is_for_lda():
    trained = training.train(PEOPLE[:6], chain=training.chain_for(PEOPLE[:6], "compact"), protocol="cross-subject")
    with pytest.raises(InputError, match="not of svm"):
        calibration.prior_of(trained.table, replace(trained.evaluation, model="svm"))


@needs_cc
def test_run_and_build_from_the_command_line(tmp_path, built, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, _ = built
    synthetic.write_folder(tmp_path / "person", [replace(recording, synthetic=True) for recording in WEARER])
    code = ["run", "--firmware", str(folder), "--recording", str(tmp_path / "person"), "--calibrate", "30", "--target", "host"]
    assert run(app, [*code, "--out", str(tmp_path / "out"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["metrics"]["same_decisions"]
    assert document["metrics"]["largest_weight_difference"] < 1e-3
    assert document["synthetic"]
    assert {"result.json", "report.html", "timeline.png", "states.txt"} <= {path.name for path in (tmp_path / "out").iterdir()}
    for arguments, word in (
        ([*code[:-1], "moon", "--out", "x"], "--target moon"),
        ([*code[:4], str(tmp_path / "nobody"), *code[5:], "--out", "x"], "nobody"),
        (["run", "--firmware", str(tmp_path), *code[3:], "--out", "x"], "model.json"),
        ([*code, "--person", "subjectz", "--out", "x"], "there are subjectd"),
    ):
        assert run(app, arguments) == 2
        error = capsys.readouterr().err
        assert word in error
        assert error.startswith("error: ")

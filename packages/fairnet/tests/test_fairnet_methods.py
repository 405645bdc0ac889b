"""Every method trains on a tiny planted set; the command line ends in a report; a search without conflict says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from edge_shared import cli
from edge_shared.artifacts import load_model
from edge_shared.errors import InputError
from fairnet.cli import app
from fairnet.compare import paired
from fairnet.data import BiasedSet, biased_images
from fairnet.methods import METHODS, method
from fairnet.methods._train import Settings, predict
from fairnet.methods.voronoi import VoronoiConfig, debias, discover


@pytest.fixture(scope="module")
def data() -> BiasedSet:
    return biased_images("digits", rho=0.8, train=300, val=40, balanced=100, seed=0)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_a_network(data: BiasedSet, name: str) -> None:
    outcome = method(name)(data, Settings(epochs=2, batch_size=50), None)
    _, predictions = predict(outcome.model, data.test, data)
    assert predictions.shape == data.test.y.shape
    assert (predictions == data.test.y).mean() > 0.1 or name in ("ffw", "voronoi-ffw", "lff", "groupdro")


def test_same_seed_same_weights(data: BiasedSet) -> None:
    first, second = (method("vanilla")(data, Settings(epochs=1), None).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_discovery_finds_the_planted_conflict() -> None:
    data = biased_images("digits", rho=0.9, train=700, val=40, balanced=100, seed=0)
    found = discover(data, Settings(epochs=3, batch_size=50))
    quality = found.quality(data)
    assert quality["recall"] > 0.8
    assert quality["precision"] > 0.6
    assert found.found.pseudo_label.shape == data.train.y.shape


def test_every_step_updates_the_network_whoever_is_in_the_batch(data: BiasedSet) -> None:
    """The official code skips the backward pass of batches without a conflicting sample; here each step moves the weights."""
    found = discover(data, Settings(epochs=2, batch_size=50)).found
    aligned = np.flatnonzero(found.aligned)
    rows = np.concatenate([aligned[:49], np.flatnonzero(~found.aligned)[:1]])
    few = BiasedSet(**{**data.__dict__, "train": data.train.take(rows)})
    subset = type(found)(found.pseudo_label[rows], found.aligned[rows], found.rho)
    start = method("vanilla")(few, Settings(epochs=0), None).model.state_dict()
    model = debias(few, Settings(epochs=1, batch_size=50), subset, VoronoiConfig(), None)
    assert not torch.equal(model.state_dict()["units.0.conv.weight"], start["units.0.conv.weight"])


def test_nothing_to_extract_is_said() -> None:
    data = biased_images("digits", rho=1.0, train=200, val=20, balanced=50, seed=0)
    easy = BiasedSet(**{**data.__dict__, "train": data.train.take(np.flatnonzero(data.train.y < 2))})
    with pytest.raises(InputError, match="no conflicting samples found"):
        discover(easy, Settings(epochs=25, batch_size=20))


def test_debias_writes_model_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    options = ["--data", "digits", "--images", "200", "--epochs", "2", "--rho", "0.8", "--out", str(out), "--json"]
    assert cli.run(app, ["debias", "--method", "ffw", *options]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"metrics", "cost", "artifacts"}
    assert document["cost"]["parameters_after"] <= document["cost"]["parameters_before"]
    assert {"result.json", "report.html", "cells.png", "cells.svg", "model"} <= {path.name for path in out.iterdir()}
    assert load_model(out / "model")(torch.zeros(1, 3, 8, 8)).shape == (1, 10)
    assert "synthetic" in (out / "report.html").read_text().lower()
    assert not out.with_name("run.partial").exists()


def test_discover_writes_alignment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found"
    assert cli.run(app, ["discover", "--images", "200", "--epochs", "2", "--rho", "0.8", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]
    lines = (out / "alignment.csv").read_text().splitlines()
    assert lines[0] == "row,label,pseudo_label,aligned"
    assert sum(line.endswith(",0") for line in lines[1:]) == found["conflicting"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["debias", "--method", "magic"], "unknown method 'magic'"),
        (["debias"], "--out DIR"),
        (["debias", "--resume", "nowhere"], "no interrupted run"),
        (["compare", "--methods", "magic", "--out", "x"], "unknown method"),
        (["compare", "--rho", "high", "--out", "x"], "--rho 'high'"),
        (["discover", "--rho", "2", "--out", "x"], "--rho"),
    ],
)
def test_bad_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(app, arguments) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_paired_interval_against_scipy() -> None:
    from scipy import stats

    ours, theirs = [0.8, 0.9, 0.85, 0.7], [0.7, 0.75, 0.8, 0.65]
    result = paired(ours, theirs)
    low, high = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((low, high))
    assert paired(ours, None).difference is None

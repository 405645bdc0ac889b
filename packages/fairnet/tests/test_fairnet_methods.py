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
from fairnet.compare import compare, paired, summarise
from fairnet.data import BiasedSet, biased_images
from fairnet.data.two_colours import two_colour_images
from fairnet.geometry import MIN_DEPTH, Alignment, Moment
from fairnet.methods import METHODS, apply, bise, magnitude_mask, random_mask
from fairnet.methods._train import Settings, cross_entropy, fresh, predict, train
from fairnet.methods.ffw import Operation, true_biases, weighted_layers
from fairnet.methods.voronoi import Discovery, VoronoiConfig, debias, discover
from fairnet.networks import gate_sites
from fairnet.score import score
from torch import nn


@pytest.fixture(scope="module")
def data() -> BiasedSet:
    return biased_images("digits", rho=0.8, train=300, val=40, balanced=100, seed=0)


QUICK = Settings(model="mlp", epochs=2, batch_size=50)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "bise"])
def test_every_method_gives_a_network(data: BiasedSet, name: str) -> None:
    outcome = apply(name, data, QUICK, None)
    _, predictions = predict(outcome.model, data.test, data)
    assert predictions.shape == data.test.y.shape
    assert (predictions == data.test.y).mean() > 0.1 or name in ("ffw", "voronoi-ffw", "lff", "groupdro", "random-mask", "magnitude-mask")


@pytest.mark.parametrize("granularity", ["weights", "channels"])
def test_control_masks_cut_as_much_as_ffw_in_every_layer(data: BiasedSet, monkeypatch: pytest.MonkeyPatch, granularity: str) -> None:
    model = fresh(data, QUICK).eval()
    shapes = (
        [site.gate_shape for site in gate_sites(model)] if granularity == "channels" else [w.weight.shape for w in weighted_layers(model)]
    )
    masks = [torch.rand(shape) < share for shape, share in zip(shapes, (0.3, 0.5, 0.9, 0.7), strict=False)]
    for module in (random_mask, magnitude_mask):
        monkeypatch.setattr(module, "operate", lambda *arguments: (model, Operation(masks, {})))
    found = [apply(name, data, QUICK, granularity=granularity).model for name in ("random-mask", "magnitude-mask")]  # type: ignore[arg-type]
    for one in found:
        if granularity == "channels":
            assert [site.gate_shape[0] for site in gate_sites(one)] == [int(mask.sum()) for mask in masks]
            continue
        for layer, base, mask in zip(weighted_layers(one), weighted_layers(model), masks, strict=True):
            kept = layer.weight != 0
            assert int(kept.sum()) == int(mask.sum())
            assert torch.equal(layer.weight[kept], base.weight[kept])  # no weight is changed
    if granularity == "weights":
        for layer, base in zip(weighted_layers(found[1]), weighted_layers(model), strict=True):
            kept, size = layer.weight != 0, base.weight.detach().abs()
            assert size[kept].min() >= size[~kept].max()


def test_a_mask_in_the_folder_is_read_again(data: BiasedSet, tmp_path: Path) -> None:
    first = apply("ffw", data, QUICK, tmp_path)
    written = (tmp_path / "ffw-channels.safetensors").stat().st_mtime_ns
    second = apply("ffw", data, QUICK, tmp_path)
    assert (tmp_path / "ffw-channels.safetensors").stat().st_mtime_ns == written
    assert first.details["channels"] == second.details["channels"]
    apply("ffw", data, QUICK, tmp_path, gamma=5.0)
    assert (tmp_path / "ffw-channels.safetensors").stat().st_mtime_ns != written


def test_bise_learns_its_mask_on_the_biased_part(data: BiasedSet) -> None:
    config = bise.BiseConfig(epochs_per_tau=1, head_epochs=3, lr=0.5)
    outcome = bise.run(data, QUICK, None, config)
    schedule = outcome.details["schedule"]
    assert [row["tau"] for row in schedule] == [0.5**n for n in range(10)]
    assert outcome.details["kept_share"] == schedule[-1]["kept"] < 1
    assert outcome.smaller is not None


def test_the_patient_is_the_network_of_an_earlier_moment(data: BiasedSet) -> None:
    """Voronoi-FFW trains again up to an epoch: the same network as the search saw then."""
    settings = Settings(model="mlp", epochs=5, batch_size=50)
    found = discover(data, settings)
    patient = train(fresh(data, settings), data.train, data, settings, cross_entropy, stop_after=4)
    moment = next(moment for moment in found.moments if moment.step == 4 * 6)
    assert np.array_equal(predict(patient, data.train, data)[1], moment.predictions)


def test_the_patient_is_taken_before_the_exceptions_are_learned_by_heart() -> None:
    labels = np.zeros(10, dtype=np.int64)
    found = Alignment(np.array([1] * 4 + [0] * 6), np.array([False] * 4 + [True] * 6), np.array([0.6, np.nan]))

    def moment(step: int, wrong: int) -> Moment:
        return Moment(step, np.array([1] * wrong + [0] * (10 - wrong)), wrong, 0.5)

    for wrong, epoch in (((4, 4, 3, 2, 1), 4), ((4, 3, 1, 1, 0), 2), ((1, 0, 0, 0, 0), 1)):
        moments = tuple(moment(10 * (index + 1), count) for index, count in enumerate(wrong))
        assert Discovery(nn.Identity(), found, found, moments, 0, True).unlearned_epoch(labels, 10) == epoch


def test_two_shortcuts_have_a_head_each_and_four_cells(tmp_path: Path) -> None:
    data = two_colour_images("digits", rho=0.9, rho_right=0.8, train=300, val=60, balanced=150, seed=0)
    outcome = apply("ffw", data, QUICK, tmp_path)
    result, _ = score(outcome.model, data)
    assert set(result.by_alignment) == {"left+ right+", "left+ right-", "left- right+", "left- right-"}
    assert result.unbiased == pytest.approx(np.mean(list(result.by_alignment.values())))
    assert len(true_biases(data, data.train)) == 2


def test_same_seed_same_weights(data: BiasedSet) -> None:
    first, second = (apply("vanilla", data, Settings(epochs=1)).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_discovery_finds_the_planted_conflict() -> None:
    data = biased_images("digits", rho=0.9, train=700, val=40, balanced=100, seed=0)
    found = discover(data, Settings(epochs=3, batch_size=50))
    quality = found.quality(data)
    assert quality["recall"] > 0.8
    assert quality["precision"] > 0.6
    assert found.found.pseudo_label.shape == data.train.y.shape


def test_where_there_is_no_shortcut_nothing_is_changed() -> None:
    """The paper's method debiases whatever it is given: colours at chance cost it two points of accuracy, and a mask made of them 17."""
    data = biased_images("digits", rho=0.1, train=700, val=100, balanced=100, seed=0)
    settings = Settings(epochs=4, batch_size=50)
    plain = apply("vanilla", data, settings).model.state_dict()
    for name in ("voronoi", "voronoi-ffw"):
        outcome = apply(name, data, settings)
        assert outcome.details["shortcut_found"] is False
        assert outcome.details["depth"] < MIN_DEPTH
        assert all(torch.equal(outcome.model.state_dict()[key], value) for key, value in plain.items())
    forced = apply("voronoi", data, settings, min_depth=0.0)
    assert forced.details["shortcut_found"] is True
    assert not all(torch.equal(forced.model.state_dict()[key], value) for key, value in plain.items())


def test_every_step_updates_the_network_whoever_is_in_the_batch(data: BiasedSet) -> None:
    """The official code skips the backward pass of batches without a conflicting sample; here each step moves the weights."""
    found = discover(data, Settings(epochs=2, batch_size=50)).found
    aligned = np.flatnonzero(found.aligned)
    rows = np.concatenate([aligned[:49], np.flatnonzero(~found.aligned)[:1]])
    few = BiasedSet(**{**data.__dict__, "train": data.train.take(rows)})
    subset = type(found)(found.pseudo_label[rows], found.aligned[rows], found.rho)
    start = apply("vanilla", few, Settings(epochs=0)).model.state_dict()
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
    assert cli.run(app, ["audit", str(out / "predictions.csv"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["unbiased_accuracy"]["value"] == pytest.approx(document["metrics"]["after"]["unbiased"])


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


def test_comparison_shares_the_biased_network_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = {"data": "digits", "images": 200, "balanced": 60}
    settings = {"model": "mlp", "epochs": 1, "batch_size": 50}
    first = compare(source, ["dfr", "jtt"], [0.8], [0, 1], settings=settings, out=tmp_path)
    assert len(list((tmp_path / "networks").iterdir())) == 2  # one folder a seed, whatever the method
    monkeypatch.setattr("fairnet.methods.apply", lambda *a, **k: pytest.fail("a finished cell ran again"))
    second = compare(source, ["dfr", "jtt"], [0.8], [0, 1], settings=settings, out=tmp_path)
    assert first["summary"] == second["summary"]
    row = first["summary"]["0.8"]["dfr"]["unbiased"]
    runs = {(c["parameters"]["method"], c["parameters"]["seed"]): c["result"]["unbiased"] for c in first["cells"]}
    assert row["difference"] == pytest.approx(np.mean([runs["dfr", s] - runs["vanilla", s] for s in (0, 1)]))


def test_a_failed_run_leaves_its_pair_out() -> None:
    def one(method: str, seed: int, value: float | None) -> dict[str, object]:
        parameters = {"source": {"rho": 0.9}, "method": method, "seed": seed}
        metrics = dict.fromkeys(("unbiased", "aligned", "conflicting", "worst_class", "probe"), value)
        return {"parameters": parameters} | ({"error": "no"} if value is None else {"result": metrics})

    found = summarise(
        [
            one("vanilla", 0, 0.5),
            one("vanilla", 1, 0.6),
            one("vanilla", 2, 0.1),
            *(one("jtt", s, v) for s, v in enumerate((0.6, 0.8, None))),
        ]
    )
    assert found["0.9"]["jtt"]["seeds"] == 2
    assert found["0.9"]["jtt"]["unbiased"]["difference"] == pytest.approx(0.15)
    assert found["0.9"]["vanilla"]["seeds"] == 3


def test_compare_writes_its_table_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "grid"
    options = [
        "--methods",
        "jtt",
        "--seeds",
        "2",
        "--images",
        "200",
        "--epochs",
        "1",
        "--model",
        "mlp",
        "--rho",
        "0.8,0.9",
        "--out",
        str(out),
    ]
    assert cli.run(app, ["compare", *options, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document["metrics"]) == {"0.8", "0.9"}
    assert {"result.json", "report.html", "scatter-0.8.png", "cells"} <= {path.name for path in out.iterdir()}
    assert cli.run(app, ["compare", *options]) == 0
    assert "paired difference" in capsys.readouterr().out

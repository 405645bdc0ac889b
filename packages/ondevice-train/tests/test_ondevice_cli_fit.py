"""fit, rank and compare through the command line and the API: one tiny network on the bundled digits."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from edge_shared.architectures import mobile
from edge_shared.artifacts import load_model, save_model
from edge_shared.cli import run
from edge_shared.data.vision import load_images
from edge_shared.errors import CheckFailed, InputError
from edge_shared.files import plain
from ondevice_train import fit as fitting
from ondevice_train import models
from ondevice_train.cli import app
from ondevice_train.compare import half_width

CONFIG = {
    "resolution": 32, "stem": {"out": 8, "stride": 4}, "classes": 10,
    "blocks": [{"kernel": 3, "expand": 2, "out": 8, "stride": 1}, {"kernel": 3, "expand": 2, "out": 16, "stride": 2}],
}  # fmt: skip


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A model folder, its norms calibrated."""
    torch.manual_seed(0)
    model = mobile.module(mobile.MobileConfig.parse(CONFIG))
    data = fitting._coloured(load_images("digits", size=32, limit=200))
    from ondevice_train.models import calibrate_norms

    calibrate_norms(model, [data.loader("train", 100).__iter__().__next__()[0]])
    folder = tmp_path_factory.mktemp("network") / "model"
    save_model(folder, model.eval(), torch.zeros(2, 3, 32, 32), classes=data.classes, onnx=False)
    return str(folder)


@pytest.fixture(scope="module")
def digits():
    return fitting._coloured(load_images("digits", size=32, limit=200))


def settings(network, **changes):
    base = {"model": network, "data": "digits", "limit": 200, "epochs": 3, "batch_size": 20, "lr": 0.1, "rank_steps": 3}
    return fitting.FitConfig(**{**base, **changes})


BUDGETS = {"neq": None, "scotti": None, "bias-only": None, "head-only": None, "velocity": "200params"}


@pytest.mark.parametrize(
    "method",
    ["sparse-update", "trady", "medyate", "full-random", "det-rgn", "velocity", "neq", "scotti", "last-k", "bias-only", "head-only"],
)
def test_every_method_learns_within_its_budget(method, network, digits):
    """Check 26, and the promise: predicted bytes are the measured ones at every epoch, and within the budget."""
    config = settings(network, method=method, budget=BUDGETS.get(method, "60kB"), momentum=0.9)
    result = fitting.run(config, data=digits, verbose=False)
    losses = [row["train_loss"] for row in result.epochs]
    assert losses[-1] < losses[0]
    assert len(result.selections) == 3
    for row in result.selections:
        assert row.predicted_saved_bytes == row.measured_saved_bytes
        assert row.predicted_total_bytes == row.measured_total_bytes
    budget = result.cost["budget"]
    if budget:
        assert all(row.budget_cost <= budget["amount"] for row in result.selections)
    if budget and budget["accounting"] == "bytes":
        assert all(row.measured_total_bytes <= budget["amount"] for row in result.selections)


@pytest.mark.parametrize(("method", "compress"), [("medyate", None), ("scotti", None), ("trady", "asi")])
def test_resume_gives_the_same_selections_and_weights(method, compress, network, digits, tmp_path, monkeypatch):
    config = settings(network, method=method, budget=BUDGETS.get(method, "60kB"), momentum=0.9, epochs=4, compress=compress)
    whole = fitting.run(config, data=digits, folder=tmp_path / "whole", verbose=False, onnx=False)

    class Killed(Exception):
        pass

    original = fitting.Driver.on_epoch

    def dies(self, epoch):
        if epoch.epoch == 2:
            raise Killed
        original(self, epoch)

    monkeypatch.setattr(fitting.Driver, "on_epoch", dies)
    with pytest.raises(Killed):
        fitting.run(config, data=digits, folder=tmp_path / "cut", verbose=False)
    monkeypatch.setattr(fitting.Driver, "on_epoch", original)
    resumed = fitting.run(config, data=digits, folder=tmp_path / "cut", verbose=False, onnx=False)
    assert [dataclasses.asdict(row) for row in resumed.selections] == [dataclasses.asdict(row) for row in whole.selections]
    assert resumed.metrics == whole.metrics
    first, second = load_model(tmp_path / "whole/model").state_dict(), load_model(tmp_path / "cut/model").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_budget_that_cannot_be_met(network, digits):
    with pytest.raises(CheckFailed, match="alone take"):
        fitting.run(settings(network, budget="1kB"), data=digits, verbose=False)


def test_device_budget(network, digits):
    from edge_shared.devices import load

    result = fitting.run(settings(network, device="stm32f746", epochs=1, method="full-random"), data=digits, verbose=False)
    assert 0 < result.cost["budget"]["amount"] < load("stm32f746").ram_budget
    assert result.cost["measured_total_bytes"] <= result.cost["budget"]["amount"]


def test_command_line(network, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["--model", network, "--data", "digits", "--limit", "100", "--epochs", "1", "--no-onnx"]
    code = run(app, ["rank", *arguments[:6], "--steps", "2", "--out", str(tmp_path / "rank"), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    ranking = json.loads(captured.out)
    assert ranking["top_layers"]
    more = ["--method", "trady", "--budget", "80kB", "--ranking", str(tmp_path / "rank/ranking.json"), "--set", "share=0.9"]
    code = run(app, ["fit", *arguments, *more, "--out", str(out), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    document = json.loads(captured.out)
    assert set(document) >= {"metrics", "cost", "artifacts"}
    assert document["cost"]["measured_total_bytes"] <= 80_000
    assert {"result.json", "report.html", "memory.png", "memory.svg", "model", "checkpoint.safetensors"} <= {p.name for p in out.iterdir()}
    assert load_model(out / "model")(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    code = run(app, ["fit", "--resume", str(out)])
    assert code == 2
    assert "finished" in capsys.readouterr().err


def test_compare(network, tmp_path, capsys):
    options = [
        "--model",
        network,
        "--limit",
        "80",
        "--epochs",
        "1",
        "--seeds",
        "2",
        "--methods",
        "full-random,head-only",
        "--budgets",
        "60kB",
    ]
    code = run(app, ["compare", *options, "--out", str(tmp_path / "comparison"), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    rows = json.loads(captured.out)["rows"]
    assert [(row["method"], row["seeds"]) for row in rows] == [("full-random", 2), ("head-only", 2)]
    assert (tmp_path / "comparison/comparison.png").exists()


def test_half_width():
    assert half_width([1.0]) is None
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.302652729911275 / 3**0.5)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--method", "nosuch"], "--method nosuch"),
        (["--method", "trady"], "--budget"),
        (["--method", "trady", "--budget", "lots"], "--budget lots"),
        (["--method", "trady", "--budget", "60kB", "--device", "pi-5"], "not both"),
        (["--method", "head-only", "--model", "nosuch"], "--model nosuch"),
        (["--method", "head-only", "--weights", "nosuch.pth"], "nosuch.pth"),
        (["--method", "head-only", "--data", "nosuch"], "nosuch"),
        (["--method", "head-only", "--set", "x"], "name=value"),
        (["--method", "full-random", "--budget", "60kB", "--set", "x=1"], "unknown option 'x'"),
        (["--method", "trady", "--budget", "60kB", "--scheme", '{"last_convs": 1}'], "sparse-update"),
        (["--method", "head-only", "--optimizer", "magic"], "optimizer"),
        (["--method", "full-random", "--budget", "60kB", "--compress", "zip"], "known: asi"),
        (["--method", "full-random", "--budget", "60kB", "--compress", "asi", "--max-error", "2"], "share of the gradient"),
        (["--method", "velocity", "--budget", "60kB", "--compress", "asi"], "selects neurons"),
        (["--method", "asi", "--compress", "asi"], "selects input channels"),
        (["--method", "asi", "--biases", "3"], "--biases goes with"),
        (["--method", "asi", "--keep-bits", "8"], "--keep-bits goes with"),
        (["--method", "auto", "--max-error", "0.1"], "--max-error goes with --compress"),
        (["--method", "asi", "--set", "epsilon=abc"], "epsilon is 'abc'"),
        (["--method", "asi", "--set", "layers=nosuch,other"], "'nosuch'"),
        (["--method", "plain", "--limit", "1", "--batch-size", "1", "--model", "mcunet-in1"], "single value"),
    ],
)
def test_bad_input(arguments, word, network, capsys):
    model = [] if "--model" in arguments else ["--model", network]
    code = run(app, ["fit", *model, "--limit", "40", "--epochs", "1", *arguments, "--json"])
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    assert word in captured.err
    assert "Traceback" not in captured.err


def test_ranks_that_follow_the_data_are_predicted(network, digits):
    """HOSVD chooses its ranks at every step: the bytes predicted are those of the pass that was measured."""
    cost = fitting.run(settings(network, method="hosvd", epochs=2), data=digits, verbose=False).cost
    assert cost["predicted_saved_bytes"] == cost["measured_saved_bytes"]


def test_models_of_a_fixed_size():
    """timm's and torchvision's transformers are made for the size of the images; timm's are written down by name."""
    made = models.builder("timm:deit_tiny_patch16_224", classes=3, size=64)
    assert made == {"library": "timm", "name": "deit_tiny_patch16_224", "arguments": {"num_classes": 3, "img_size": 64}}
    with pytest.raises(InputError, match="--model vit_b_16 cannot be made for this image size"):
        models.build("vit_b_16", classes=3, size=40)
    with pytest.raises(InputError, match="no such model"):
        models.build("timm:nosuch", classes=3, size=32)


def test_lora_trains_and_merges(network, digits):
    pytest.importorskip("peft")
    result = fitting.run(settings(network, method="lora", options={"rank": 2}), data=digits, verbose=False)
    losses = [row["train_loss"] for row in result.epochs]
    assert losses[-1] < losses[0]


def test_an_int8_graph_trains_and_goes_back(network, digits):
    result = fitting.run(settings(network, method="qas", last=3), data=digits, verbose=False)
    losses = [row["train_loss"] for row in result.epochs]
    assert losses[-1] < losses[0]


def test_batches_of_one_image(network, digits):
    """A norm that would see one value is no obstacle where statistics are frozen, and a clear error where they are not."""
    few = fitting._coloured(load_images("digits", size=8, limit=12))
    one = {"limit": 12, "epochs": 1, "batch_size": 1, "image_size": 8, "rank_steps": 1}
    result = fitting.run(settings(network, method="medyate", budget="30kB", **one), data=few, verbose=False, onnx=False)
    assert all(row.channels and row.measured_total_bytes <= 30_000 for row in result.selections)
    with pytest.raises(InputError, match="--batch-size"):
        fitting.run(settings(network, method="plain", **one), data=few, verbose=False)


def test_a_ranking_of_another_network_is_refused(network, digits):
    ranking = plain(fitting.rank(settings(network), data=digits))
    ranking["layers"][1]["channels"] += 1
    with pytest.raises(InputError, match="rank this model"):
        fitting.run(settings(network, method="trady", budget="60kB", ranking=ranking), data=digits, verbose=False)


def test_a_budget_that_holds_no_channel_says_so(network, digits, capsys):
    result = fitting.run(settings(network, method="full-random", budget="1units", epochs=1), data=digits)
    assert result.selections[0].channels == 0
    assert "the head alone trains" in capsys.readouterr().err

"""pi-adapt: the planted light, the stages, what they promise, and what a user's own files do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from edge_shared import cli
from edge_shared.artifacts import load_model, save_model
from pi_adapt import material
from pi_adapt.cli import app
from pi_adapt.light import STRENGTH, lights, under_light
from pi_adapt.stages.data import shifted, with_channels
from pi_adapt.stages.pick import pi_space
from PIL import Image

FAST = [
    "--limit", "60",
    "--epochs", "1",
    "--finetune-epochs", "1",
    "--gate-epochs", "2",
    "--personal-epochs", "1",
    "--networks", "10",
    "--repeats", "10",
    "--tolerance", "1", "--personal-lr", "0.002",
]  # fmt: skip
pytestmark = pytest.mark.timeout(900)


def run(*arguments: object) -> int:
    return cli.run(app, ["run", *map(str, arguments)])


def test_a_light_is_mixed_into_every_pixel() -> None:
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (12, 5, 5, 3), dtype=np.uint8)
    groups = random.integers(0, 4, 12)
    lit = under_light(x, groups, 4)
    expected = (1 - STRENGTH) * x + STRENGTH * lights(4, 3)[groups][:, None, None, :]
    assert np.abs(lit - expected).max() <= 0.5
    # The light of a group is one number per channel: the same for every pixel of a constant image.
    flat = under_light(np.full((4, 3, 3, 1), 100, np.uint8), np.arange(4), 4)
    assert (flat == flat[:, :1, :1]).all()
    np.testing.assert_array_equal(flat[:, 0, 0, 0], np.rint(80 + 0.2 * np.array([0, 85, 170, 255])))


def test_domains_and_channels() -> None:
    x = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 1)
    turned = x
    for _ in range(4):
        turned = shifted("rotated", turned)
    np.testing.assert_array_equal(turned, x)
    np.testing.assert_array_equal(shifted("inverted", shifted("inverted", x)), x)
    np.testing.assert_array_equal(with_channels(with_channels(x, 3), 1), x)


def test_the_space_shortens_well() -> None:
    """A block of the space, merged into one 3x3 convolution, takes fewer multiply-accumulates than its three layers."""
    space = pi_space(8, 3, 10)
    for stage in space.stages:
        c = stage.width
        for expand in stage.expands:
            mid = round(c * expand)
            assert 9 * c * c < 2 * c * mid + 9 * mid


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One fast run through all stages."""
    out = tmp_path_factory.mktemp("pi") / "out"
    assert run(*FAST, "--shift", "rotated", "--out", out) == 0
    return out


def test_what_a_run_leaves(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((finished / "result.json").read_text())
    stages = result["metrics"]["stages"]
    assert list(stages) == ["data", "pick", "shorten", "audit", "personalise", "export"]
    assert len(result["metrics"]["table"]["rows"]) == 5
    training = stages["personalise"]["training"]
    assert training["predicted_total_bytes"] == training["measured_total_bytes"] <= 64_000
    assert training["predicted_saved_bytes"] == training["measured_saved_bytes"]
    assert stages["pick"]["ram_bytes"] <= stages["pick"]["budget_bytes"]
    # Every activation could go, so the expansions did, and what merged is cheaper and shorter.
    assert stages["shorten"]["merges"]
    assert stages["shorten"]["cost"]["layers"] < stages["pick"]["cost"]["layers"]
    assert result["data"]["synthetic"]
    assert any("synthetic" in note for note in result["notes"])
    assert any("not the Pi's" in note for note in result["notes"])
    page = (finished / "report.html").read_text()
    for word in ("Stage by stage", "Worst light", "Learning on the device", "synthetic"):
        assert word in page


def test_the_exported_files_are_the_network(finished: Path) -> None:
    work = material.load(finished / "1-data")
    folder = finished / "6-export/model"
    x = next(iter(work.personal.loader("test", 60)))[0]
    with torch.no_grad():
        expected = load_model(folder)(x).numpy()
    for name, tolerance in (("model.onnx", 1e-5), ("model.int8.onnx", 0.5)):
        session = onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
        got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def test_the_light_is_in_training_only(finished: Path) -> None:
    """In training rho of the images have the light of their class; in the test part light and class are independent."""
    work = material.load(finished / "1-data")
    images = work.images
    for part, rho in (("train", 0.9), ("val", 0.9), ("test", 0.1)):
        y = images.arrays(part)[1]  # type: ignore[arg-type]
        wanted = sum(int(np.floor((y == label).sum() * rho + 1e-9)) for label in range(10))
        assert (work.lights[part] == y).sum() == wanted
    # Images of the new domain are the test images, turned; the statistics stay those of training.
    np.testing.assert_array_equal(work.personal.test_x, np.rot90(images.test_x, axes=(1, 2)))
    assert work.personal.mean == images.mean == pytest.approx((images.train_x / 255).mean((0, 1, 2)), abs=1e-4)


def test_a_cut_off_run_goes_on(finished: Path, tmp_path: Path) -> None:
    """Without its last stages, as after a kill in the fifth; the slow test of resuming kills for real, in every stage."""
    shutil.copytree(finished, tmp_path / "out.partial")
    for name in ("5-personalise", "6-export"):
        shutil.rmtree(tmp_path / "out.partial" / name)
    for name in ("result.json", "report.html"):
        (tmp_path / "out.partial" / name).unlink()
    assert run("--resume", tmp_path / "out") == 0
    for name in ("model.safetensors", "model.int8.onnx"):
        file = f"6-export/model/{name}"
        assert (tmp_path / "out" / file).read_bytes() == (finished / file).read_bytes()


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's own things: images in folders, a model folder, a device."""
    random = np.random.default_rng(0)
    for label, name in enumerate(("cup", "key", "pen")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(24):
            pixels = random.integers(0, 120, (16, 16, 3), dtype=np.uint8)
            pixels[4:12, 4:12, label] = 255
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 32, 1), torch.nn.ReLU(), torch.nn.Conv2d(32, 8, 1),
        torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 3),
    )  # fmt: skip
    save_model(
        tmp_path / "model", model.eval(), torch.zeros(1, 3, 16, 16), classes=("cup", "key", "pen"), onnx=False,
        normalisation={"mean": [0.4, 0.4, 0.4], "std": [0.3, 0.3, 0.3]},
    )  # fmt: skip
    (tmp_path / "board.toml").write_text(
        'name = "my-board"\nkind = "linux"\nclock_hz = 1_000_000_000\nram_total = 67108864\nram_largest_region = 67108864\n'
        'weight_placement = "ram"\nmemory_model = "A"\n[caches]\nl2 = 524288\n'
    )
    return tmp_path


def test_own_model_data_and_device(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in the README: nothing is planted, the model keeps its normalisation, all three come by path."""
    options = ["--data", own / "photos", "--model", own / "model", "--device", own / "board.toml", "--shift", "inverted"]
    assert run(*options, *FAST, "--epochs", 2, "--out", own / "out", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    stages = document["metrics"]["stages"]
    assert not stages["data"]["planted"]
    assert stages["audit"]["mask"] is None
    assert stages["pick"]["budget_bytes"] == 67_108_864
    assert stages["shorten"]["cost"]["layers"] < stages["pick"]["cost"]["layers"]
    recipe = json.loads((own / "out/6-export/model/recipe.json").read_text())
    assert recipe["classes"] == ["cup", "key", "pen"]
    assert recipe["normalisation"]["mean"] == [0.4, 0.4, 0.4]
    assert run(*options, "--budget", "4kB", "--out", own / "small") == 1
    weights = sum(parameter.numel() for parameter in load_model(own / "model").parameters())
    needed = 4 * (weights + 2 * 32 * 16 * 16)  # the widest map before and after its ReLU
    assert f"needs {needed:,} bytes of RAM on my-board, the budget is 4,000" in capsys.readouterr().err


@pytest.mark.slow
def test_torchvision_name_with_weights_and_own_domain(own: Path) -> None:
    import torchvision

    network = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=7)
    torch.save(network.state_dict(), own / "weights.pth")
    options = ["--data", own / "photos", "--model", "shufflenet_v2_x0_5", "--weights", own / "weights.pth", "--image-size", 32]
    assert run(*options, "--shift", own / "photos", "--training-budget", "400kB", *FAST, "--out", own / "out") == 0


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--device", "pi-9"], 2, "unknown device"),
        (["--shortcut", "smell"], 2, "choose one of"),
        (["--shift", "sideways"], 2, "inverted or rotated"),
        (["--weights", "w.pth"], 2, "--weights goes with"),
        (["--data", "no-such-set"], 2, "no data set named"),
        (["--model", "no-such-net"], 2, "unknown"),
        (["--model", __file__], 2, "is a file: give the folder"),
        (["--budget", "1B"], 1, "smallest"),
        (["--budget", "soon"], 2, "no byte size"),
        (["--space", "nowhere.json"], 2, "nowhere.json"),
        (["--method", "guess"], 2, "unknown"),
        (["--training-budget", "12x"], 2, "write bytes"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, words: str) -> None:
    assert run(*options, "--limit", 20, "--out", tmp_path / "out") == code
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error


def test_nothing_to_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--resume", tmp_path / "out") == 2
    assert "no interrupted run" in capsys.readouterr().err

"""The packages compose: what one writes, every other that takes a model loads, with the same outputs; one network goes through all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from edge_shared.artifacts import load_artifact, load_model, save_model
from edge_shared.data.vision import load_images
from edge_shared.files import Run, open_run, write_json

pytestmark = pytest.mark.timeout(600)
LIMIT = 100


def opened(folder: Path, **config: object) -> Run:
    return open_run(folder, None, config)


def by_moofa(folder: Path) -> Path:
    """`moofa train` and `moofa extract`, in Python: a network of the space digits8 for grey 8 x 8 images."""
    from moofa.space import Choice, load_space
    from moofa.workflow import Trained, specialise, train

    settings = {
        "data": "digits", "limit": LIMIT, "seed": 0, "schedule": "sandwich", "source": "once-for-all", "epochs": 1, "batch_size": 50,
        "lr": 0.1, "networks": 10, "accelerator": "cpu",
    }  # fmt: skip
    run = opened(folder / "supernet", **settings)
    train(run, load_space("digits8"))
    run.commit()
    choice = Choice(8, (((3, 4.0),), ((3, 4.0),)))
    specialise(Trained.load(folder / "supernet"), choice, folder)
    return folder / "model"


def by_depthprune(folder: Path) -> Path:
    from depthprune.job import PruneConfig, prune, setup

    config = PruneConfig("digits", limit=LIMIT, epochs=1, finetune_epochs=0, layers=1, tolerance=1.0, policy="always", repeats=10)
    prune(setup(config), Run(folder, folder, {}, resumed=False))
    return folder / "merged"


def by_fairnet(folder: Path) -> Path:
    from fairnet.data import biased_images
    from fairnet.debias import debias
    from fairnet.methods._train import Settings

    run = opened(folder)
    debias(biased_images("digits", train=150, val=50, balanced=100), "dfr", Settings(epochs=1), run)
    return folder / "model"


def by_ondevice_train(folder: Path) -> Path:
    from ondevice_train.fit import FitConfig
    from ondevice_train.fit import run as fit

    torch.manual_seed(0)
    start = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(8, 10),
    )  # fmt: skip
    save_model(folder / "start", start.eval(), torch.zeros(2, 3, 8, 8), classes=tuple("0123456789"), onnx=False)
    fit(FitConfig(model=str(folder / "start"), limit=LIMIT, method="bias-only", epochs=1), folder=folder, verbose=False)
    return folder / "model"


MAKERS: dict[str, Callable[[Path], Path]] = {
    "moofa": by_moofa,
    "depthprune": by_depthprune,
    "fairnet": by_fairnet,
    "ondevice-train": by_ondevice_train,
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("artifacts")
    made = {}
    for name, maker in MAKERS.items():
        (folder / name).mkdir()
        made[name] = maker(folder / name)
    return made


@pytest.mark.parametrize("maker", MAKERS)
def test_every_package_loads_what_another_wrote(artifacts: dict[str, Path], maker: str) -> None:
    from depthprune.models import build as depthprune_build
    from ondevice_train.models import build as ondevice_build

    folder = artifacts[maker]
    artifact = load_artifact(folder)
    channels, side = artifact.input_shape[1:3]
    x = torch.randn(5, channels, side, side)
    with torch.no_grad():
        expected = artifact.model(x)
    loaded = {
        "shared": load_model(folder),
        "depthprune": depthprune_build(str(folder), (channels, side, side), 10).eval(),
        "ondevice-train": ondevice_build(str(folder), classes=10, size=side)[0].eval(),
    }
    for model in loaded.values():
        with torch.no_grad():
            assert torch.equal(model(x), expected)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    scale = float(expected.abs().max())
    assert np.abs(got - expected.numpy()).max() <= 1e-5 * scale


def test_one_network_goes_through_all_packages(artifacts: dict[str, Path], tmp_path: Path) -> None:
    """moofa's network, its blocks made linear and merged by depthprune, audited and cut by fairnet, fine-tuned by ondevice-train, exported."""
    from depthprune.capture import capture, sites
    from depthprune.merging import merge
    from depthprune.surgery import remove
    from fairnet.data import BiasedSet
    from fairnet.data.parts import Attribute, Part
    from fairnet.methods._train import Settings
    from fairnet.methods.ffw import FfwConfig, cut, surgery
    from fairnet.score import audit_of, score
    from ondevice_train.fit import FitConfig
    from ondevice_train.fit import run as fit

    images = load_images("digits", limit=LIMIT)
    example = next(iter(images.loader("val", 2)))[0]
    graph = capture(load_model(artifacts["moofa"]), example)
    inner = [site.name for site in sites(graph) if "blocks.0" in site.name]
    for site in inner:
        remove(graph, site)
    linear = graph.eval()
    merged = merge(linear, example, policy="always", mode="bias-map")
    assert merged.certificates
    x = next(iter(images.loader("test", 64)))[0]
    with torch.no_grad():
        torch.testing.assert_close(merged.model(x), linear(x), rtol=1e-4, atol=1e-4)

    groups = ("even", "odd")
    part = {name: Part(x, y, y % 2) for name, (x, y) in ((name, images.arrays(name)) for name in ("train", "val", "test"))}  # type: ignore[arg-type]
    data = BiasedSet(
        "digits", images.classes, groups, part["train"], part["val"], part["val"], part["test"], False, images.mean, images.std,
        attributes=(Attribute("parity", groups, np.arange(2), np.arange(10) % 2),),
    )  # fmt: skip
    found, predictions = score(merged.model, data)
    assert found.accuracy == pytest.approx(audit_of(predictions, data).accuracy.value)
    every = np.ones(len(data.train))
    operation = surgery(
        merged.model, data, data.train, [(data.train.b, 2)], every, every.astype(bool), Settings(), FfwConfig("weights", epochs=2)
    )
    masked = cut(merged.model, operation.masks, "weights", operation.details).model
    save_model(
        tmp_path / "masked", masked, example, classes=images.classes, onnx=False, normalisation={"mean": images.mean, "std": images.std}
    )

    settings = FitConfig(model=str(tmp_path / "masked"), limit=LIMIT, method="sparse-update", budget="40kB", epochs=1, batch_size=8)
    result = fit(settings, folder=tmp_path / "tuned", verbose=False)
    assert result.cost["measured_total_bytes"] == result.cost["predicted_total_bytes"] <= 40_000
    tuned = load_model(tmp_path / "tuned/model")
    session = onnxruntime.InferenceSession(str(tmp_path / "tuned/model/model.onnx"), providers=["CPUExecutionProvider"])
    expected = tuned(x).detach().numpy()
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_grey_model_is_fine_tuned_on_grey_images(artifacts: dict[str, Path]) -> None:
    from edge_shared.errors import InputError
    from ondevice_train.fit import FitConfig, load_data

    images = load_data(FitConfig(model=str(artifacts["moofa"]), data="digits"))
    assert images.shape == (1, 8, 8)
    assert load_data(FitConfig(model="mcunet-in1", data="digits")).shape == (3, 32, 32)
    with pytest.raises(InputError, match="takes grey images"):
        load_data(FitConfig(model=str(artifacts["moofa"]), data=str(colour_set(artifacts["moofa"].parent))))


def colour_set(folder: Path) -> Path:
    random = np.random.default_rng(0)
    np.savez(folder / "colour.npz", x_train=random.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), y_train=np.arange(60) % 2)
    write_json(folder / "colour.json", {"synthetic": True})
    return folder / "colour.npz"

"""A small saved network on the offline digits, and one thread per test."""

import pytest

CONFIG = {
    "resolution": 8,
    "in_channels": 1,
    "stem": {"out": 8, "stride": 1},
    "blocks": [
        {"kernel": 3, "expand": 1, "out": 8},
        {"kernel": 5, "expand": 2, "out": 8},
        {"kernel": 3, "expand": 3, "out": 12, "stride": 2},
        {"kernel": 5, "expand": 2, "out": 12},
    ],
    "classes": 10,
}


def _settled(config: dict, images, seed: int = 0):
    """A network of the mobile family with random weights whose norms have seen normalised images."""
    import torch
    from edge_shared.architectures import mobile

    torch.manual_seed(seed)
    module = mobile.module(mobile.MobileConfig.model_validate(config))
    module.train()
    with torch.no_grad():
        for _ in range(20):
            module(images)
    return module.eval()


@pytest.fixture(autouse=True)
def one_thread():
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def settled():
    return _settled


@pytest.fixture(scope="session")
def digits():
    from edge_shared.data.vision import load_images

    return load_images("digits")


@pytest.fixture(scope="session")
def saved(tmp_path_factory, digits):
    """A folder as `moofa extract` leaves it: model/ inside."""
    import torch
    from edge_shared.artifacts import save_model
    from edge_shared.training import TrainConfig, fit

    batch = next(iter(digits.loader("train", 256)))[0]
    network = _settled(CONFIG, batch)
    fit(network, digits.loader("train", 64, shuffle=True), None, TrainConfig(epochs=8, batch_size=64, lr=0.1), device="cpu")
    folder = tmp_path_factory.mktemp("saved")
    normalisation = {"mean": digits.mean, "std": digits.std}
    save_model(folder / "model", network.eval(), torch.zeros(1, 1, 8, 8), classes=digits.classes, normalisation=normalisation, onnx=False)
    return folder

"""EEGNet on raw windows: the numbers of braindecode's, scikit-learn's manners, learning, and the protocols."""

from __future__ import annotations

import json

import numpy as np
import pytest
from edge_shared.cli import run
from edge_shared.errors import InputError
from sklearn.base import clone
from tinyeeg import eegnet, presets, synthetic
from tinyeeg.cli import app
from tinyeeg.table import extract, raw_windows

torch = pytest.importorskip("torch")


def tones(count, seed=0):
    """Two channels of noise; class 1 has 10 Hz on the second."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 2
    X = rng.normal(size=(count, 2, 128)) * 10
    phase = rng.uniform(0, 2 * np.pi, count)
    X[:, 1] += (y * 12)[:, None] * np.sin(2 * np.pi * 10 * np.arange(128) / 64 + phase[:, None])
    return X, np.array(["quiet", "tone"])[y]


@pytest.mark.parametrize(("channels", "samples", "classes", "parameters"), [(14, 256, 3, 1715), (7, 256, 3, 1603), (4, 256, 3, 1555)])
def test_sizes_known_from_the_literature(channels, samples, classes, parameters):
    network = eegnet.network(channels, samples, classes)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert eegnet.cost(channels, samples, classes, 64)["parameters"] == parameters
    assert eegnet.cost(14, 256, 3, 64)["multiplications_per_decision"] == pytest.approx(1.93e6, rel=0.03)


def test_multiplications_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    network = eegnet.network(4, 512, 3, kernel=128).eval()
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, 4, 512))
    assert counter.get_total_flops() == 2 * eegnet.cost(4, 512, 3, 128)["multiplications_per_decision"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kernel", [64, 33])
def test_equals_braindecode(kernel):
    models = pytest.importorskip("braindecode.models")
    theirs = models.EEGNet(n_chans=4, n_outputs=3, n_times=320, kernel_length=kernel, final_layer_with_constraint=True).eval()
    ours = eegnet.network(4, 320, 3, kernel=kernel).eval()
    given = theirs.state_dict()
    state = {key: value for key, value in given.items() if key in ours.state_dict()}
    state["conv_spatial.weight"] = theirs.conv_spatial.weight
    final = [value for key, value in given.items() if key.startswith("final_layer")]
    state["classifier.weight"] = next(value for value in final if value.ndim == 2)
    state["classifier.bias"] = next(value for value in final if value.ndim == 1)
    for key, value in state.items():
        if key.endswith("running_mean"):
            value.normal_()
        if key.endswith("running_var"):
            value.uniform_(0.5, 2)
    ours.load_state_dict(state)
    x = torch.randn(5, 4, 320)
    # braindecode flattens (width, F2) in that order for the constrained layer, as we do (F2, width): compare before it.
    with torch.inference_mode():
        mine = ours[:-2](x[:, None])
        hook = {}
        theirs.drop_2.register_forward_hook(lambda module, inputs, output: hook.update(found=output))
        theirs(x)
    torch.testing.assert_close(mine, hook["found"])


def test_learns_a_tone_the_same_way_twice_and_keeps_the_constraint():
    X, y = tones(160)
    model = eegnet.EEGNetClassifier(kernel=32, epochs=12, lr=5e-3)
    first = clone(model).fit(X, y)
    test_X, test_y = tones(60, seed=1)
    assert first.score(test_X, test_y) > 0.9
    assert list(first.classes_) == ["quiet", "tone"]
    np.testing.assert_allclose(first.predict_proba(test_X).sum(axis=1), 1)
    np.testing.assert_array_equal(first.predict_proba(test_X), clone(model).fit(X, y).predict_proba(test_X))
    np.testing.assert_allclose(clone(model).fit(1000 * X, y).predict_proba(1000 * test_X), first.predict_proba(test_X), atol=1e-4)
    assert first.network_.conv_spatial.weight.flatten(1).norm(dim=1).max() <= 1 + 1e-5


def test_bad_input_is_named():
    X, y = tones(8)
    with pytest.raises(InputError, match="n_windows, n_channels, n_times"):
        eegnet.EEGNetClassifier().fit(X[:, 0], y)
    with pytest.raises(InputError, match="one class only"):
        eegnet.EEGNetClassifier().fit(X, ["a"] * 8)
    with pytest.raises(InputError, match="too short"):
        eegnet.EEGNetClassifier().fit(X[..., :20], y)
    fitted = eegnet.EEGNetClassifier(epochs=1).fit(X, y)
    with pytest.raises(InputError, match="3 channels"):
        fitted.predict(np.zeros((1, 3, 128)))


def test_raw_windows_have_the_origins_of_feature_windows_without_smoothing():
    recordings = synthetic.generate(subjects=2, sessions=1, seconds=6)
    cut = raw_windows(recordings, presets.compact())
    assert cut.X.shape == (6 * 9, 4, 512)
    features = extract(recordings, presets.compact(smooth_s=2.0))
    np.testing.assert_array_equal(cut.windows.start, features.windows.start)
    np.testing.assert_array_equal(cut.windows.y, features.windows.y)
    spectrum = np.abs(np.fft.rfft(cut.X * presets.compact().window)) ** 2
    alpha = spectrum[:, 1, 16:26].sum(axis=1) * presets.compact().scale
    np.testing.assert_allclose(10 * np.log10(alpha), features.X[:, features.chain.feature_names().index("AF7_alpha_dB")])


@pytest.mark.slow
def test_train_from_the_command_line(tmp_path, capsys):
    data = tmp_path / "data"
    assert run(app, ["generate", "--out", str(data), "--subjects", "2", "--sessions", "1", "--seconds", "8"]) == 0
    capsys.readouterr()
    code = ["train", "--csv-dir", str(data), "--model", "eegnet", "--out", str(tmp_path / "run"), "--json"]
    assert run(app, code) == 0
    document = json.loads(capsys.readouterr().out)
    assert [fold["fold"] for fold in document["metrics"]["folds"]] == ["subjecta", "subjectb"]
    assert {"result.json", "model.safetensors", "model.onnx", "recipe.json"} <= {p.name for p in (tmp_path / "run").iterdir()}
    assert run(app, [*code[:-3], "--tune"]) == 2

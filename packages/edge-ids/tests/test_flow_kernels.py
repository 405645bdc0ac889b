"""Attention and feed-forward with hand-written gradients against torch's own in float64; bfloat16 within its rounding; training from 2 processes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from edge_ids.cli import app
from edge_ids.flow import kernels, neural
from edge_ids.flow.graphids import attention_mask
from edge_ids.flow.presets import NeuralConfig
from edge_shared.cli import run
from edge_shared.errors import InputError
from safetensors.numpy import load_file

SMALL = NeuralConfig(embedding=8, graph_dropout=0.5, width=8, feed_forward=16, heads=2, window=16, batch=64, lr=1e-3, epochs=3)


def leaves(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def reference_attention(q, k, v, bias, heads):
    parts = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v)]
    return F.scaled_dot_product_attention(*parts, bias).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("masked", [True, False])
def test_attention_and_its_gradient_in_float64(masked):
    q, k, v = leaves((2, 10, 12), (2, 10, 12), (2, 10, 12))
    bias = attention_mask(10, 0.3, torch.Generator().manual_seed(1)).double() if masked else None
    torch.testing.assert_close(kernels.attention(q, k, v, bias, 3, torch.float64), reference_attention(q, k, v, bias, 3))
    assert torch.autograd.gradcheck(lambda *parts: kernels.attention(*parts, bias, 3, torch.float64), (q, k, v))


def test_feed_forward_and_its_gradient_in_float64():
    x, w1, b1, w2, b2 = leaves((2, 5, 4), (9, 4), (9,), (4, 9), (4,))
    expected = F.linear(F.relu(F.linear(x, w1, b1)), w2, b2)
    torch.testing.assert_close(kernels.feed_forward(x, w1, b1, w2, b2, torch.float64), expected)
    assert torch.autograd.gradcheck(lambda *parts: kernels.feed_forward(*parts, torch.float64), (x, w1, b1, w2, b2))


def test_bfloat16_gradients_are_within_its_rounding():
    """bfloat16 keeps 8 bits: a product is off by up to 2^-8, a gradient of many of them by a few times that."""
    config = NeuralConfig(graph_dropout=0.0)
    z = torch.randn(1, 512, 72, generator=torch.Generator().manual_seed(0))
    mask = attention_mask(512, 0.15, torch.Generator().manual_seed(0))
    gradients = {}
    for precision in ("float32", "bfloat16"):
        model = neural.build("graphids", 41, config, 0).train()
        with kernels.reduced(model, precision):
            model.errors(z, None, mask).mean().backward()
        gradients[precision] = {name: item.grad for name, item in model.named_parameters() if item.grad is not None}
    assert gradients["float32"].keys() == gradients["bfloat16"].keys()
    for name, exact in gradients["float32"].items():
        difference = (gradients["bfloat16"][name] - exact).norm() / exact.norm()
        # The gradient of the key's bias is 0 but for rounding: softmax does not feel a constant.
        assert difference < 0.1 or exact.norm() < 1e-3, (name, difference)
    assert all(item.dtype == torch.float32 for item in gradients["bfloat16"].values())


def test_scoring_never_uses_bfloat16():
    model = neural.build("graphids", 41, SMALL, 0)
    x = np.random.default_rng(0).random((64, 41), dtype=np.float32)
    ends = np.arange(64) % 5
    neural.train(model, x, ends, ends[::-1].copy(), SMALL, seed=0, validate=lambda: None, precision="bfloat16")
    assert all(layer.dtype is None for layer in model.modules() if hasattr(layer, "dtype"))


def test_precisions():
    assert kernels.resolve("float32") == "float32"
    assert kernels.resolve("auto") in ("float32", "bfloat16")
    with pytest.raises(InputError, match="--precision half"):
        kernels.resolve("half")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("launcher", ["torchrun", "fabric"])
def test_two_processes_train_as_one(tmp_path, launcher):
    """Two real gloo processes share each batch; weights and figures are those of one process that takes it whole."""
    assert run(app, ["flow", "generate", "--flows", "2000", "--out", str(tmp_path / "f.csv")]) == 0
    script = Path(sys.executable).with_name("edge-ids")
    rest = ["flow", "train", "--data", tmp_path / "f.csv", "--model", "graphids", "--preset", "unsw-v2", "--epochs", "3", "--no-controls"]
    rest += ["--precision", "float32", "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, *rest, tmp_path / "one"], check=True, capture_output=True, env=environment)
    launch = {
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29613"],
        "fabric": [sys.executable, "-m", "lightning_fabric.cli", "--accelerator=cpu", "--devices=2", "--strategy=ddp", "--main-port=29614"],
    }[launcher]
    done = subprocess.run([*launch, script, *rest, tmp_path / "two"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=1e-4, err_msg=name)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(path.name for path in (tmp_path / "one").iterdir())

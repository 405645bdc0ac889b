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


def workspaces():
    return kernels.Workspace(torch.float64), kernels.Workspace(torch.float64)


def reference_attention(x, memory, w_in, b_in, w_out, b_out, bias, heads):
    width = x.shape[-1]
    q = F.linear(x, w_in[:width], b_in[:width])
    k, v = F.linear(memory, w_in[width:], b_in[width:]).chunk(2, -1)
    parts = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v)]
    return F.linear(F.scaled_dot_product_attention(*parts, bias).transpose(1, 2).flatten(2), w_out, b_out)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_attention_and_its_gradient_in_float64(masked, itself, scale):
    """Logits of ordinary size, and so large that their powers would overflow."""
    x, memory, *weights = leaves((2, 10, 12), (2, 10, 12), (36, 12), (36,), (12, 12), (12,))
    weights[0] = (weights[0].detach() * scale).requires_grad_()
    bias = attention_mask(10, 0.3, torch.Generator().manual_seed(1)).double() if masked else None
    leaf = [x, *weights] if itself else [x, memory, *weights]
    got = kernels.attention(x, None if itself else memory, *weights, bias, 3, *workspaces())
    expected = reference_attention(x, x if itself else memory, *weights, bias, 3)
    torch.testing.assert_close(got, expected)
    push = torch.randn(got.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    right = torch.autograd.grad(expected, leaf, push)
    largest = max(part.abs().max().item() for part in right)
    for mine, exact in zip(torch.autograd.grad(got, leaf, push), right, strict=True):
        torch.testing.assert_close(mine, exact, atol=1e-9 * largest, rtol=1e-7)


@pytest.mark.parametrize("size", [0.0, 60.0, 100.0, 2000.0])
def test_attention_survives_logits_of_any_size(size):
    """One key far from the others: its logits are about `size` squared, beyond what float32 has powers for."""
    x = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.cat([torch.eye(4)] * 3), torch.zeros(12), torch.eye(4), torch.zeros(4)
    large = (x.detach() * torch.tensor([-size, *[1.0] * 7])[:, None]).requires_grad_()
    got = kernels.attention(large, None, *weights, None, 1, kernels.Workspace(torch.float32), kernels.Workspace(torch.float32))
    expected = reference_attention(large.double(), large.double(), *(part.double() for part in weights), None, 1)
    torch.testing.assert_close(got.double(), expected, atol=1e-4 * max(1.0, size), rtol=1e-4)
    (mine,) = torch.autograd.grad(got.sum(), large)
    assert torch.isfinite(mine).all()


def test_feed_forward_and_its_gradient_in_float64():
    parts = leaves((2, 5, 4), (9, 4), (9,), (4, 9), (4,))
    x, w1, b1, w2, b2 = parts
    got, expected = kernels.feed_forward(*parts, *workspaces()), F.linear(F.relu(F.linear(x, w1, b1)), w2, b2)
    torch.testing.assert_close(got, expected)
    push = torch.randn(got.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for mine, exact in zip(torch.autograd.grad(got, parts, push), torch.autograd.grad(expected, parts, push), strict=True):
        torch.testing.assert_close(mine, exact)


def test_float32_kernels_train_like_torchs_own():
    """The same gradients as the plain layers, without and with windows of another length after it."""
    z = torch.randn(2, 32, 8, generator=torch.Generator().manual_seed(0))
    masks = {length: attention_mask(length, 0.15, torch.Generator().manual_seed(length)) for length in (32, 20)}
    plain, ours = neural.build("graphids", 5, SMALL, 0).train(), neural.build("graphids", 5, SMALL, 0).train()
    with kernels.reduced(ours, "float32"):
        for length, mask in masks.items():
            for model in (plain, ours):
                model.errors(z[:, :length], None, mask).mean().backward()
    for (name, exact), mine in zip(plain.named_parameters(), ours.parameters(), strict=True):
        if exact.grad is not None:
            torch.testing.assert_close(mine.grad, exact.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_bfloat16_gradients_are_within_its_rounding():
    """bfloat16 keeps 8 bits: a product is off by up to 2^-8, a gradient of many of them by a few times that."""
    config = NeuralConfig(graph_dropout=0.0)
    z = torch.randn(1, 512, 72, generator=torch.Generator().manual_seed(0))
    mask = attention_mask(512, 0.15, torch.Generator().manual_seed(0))
    gradients = {}
    for precision in ("float32", "bfloat16"):
        model = neural.build("graphids", 41, config, 0).train()
        if precision == "float32":
            model.errors(z, None, mask).mean().backward()
        else:
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
    assert all(layer.own is None and layer.shared is None for layer in model.modules() if hasattr(layer, "own"))


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
        "fabric": [
            sys.executable,
            "-m",
            "lightning_fabric.cli",
            "--accelerator=cpu",
            "--devices=2",
            "--strategy=ddp",
            "--main-port=29614",
            "--",
        ],  # else fabric takes our --precision for its own
    }[launcher]
    done = subprocess.run([*launch, script, *rest, tmp_path / "two"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=1e-4, err_msg=name)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(path.name for path in (tmp_path / "one").iterdir())
